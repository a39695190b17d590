"""Messages of Arrow's IPC forms, looked at before Arrow unpacks them.

A message is its length, a description (a flatbuffer), and a body of buffers. Where buffers are
compressed, each begins with the number of bytes that it becomes, which may be anything.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.limits import check_unpacked

__all__ = ["MAGIC", "CheckedStream", "Message", "messages_of"]

MAGIC = b"ARROW1"
_CONTINUES = 0xFFFFFFFF
_DICTIONARY, _BATCH = 2, 3
_MOST_DESCRIBED = 2**26
_BUFFER = struct.Struct("<qq")


@dataclass(frozen=True)
class Message:
    """What the description of a message says.

    Attributes:
        start: where it begins.
        head: bytes of length and description.
        body: bytes of its body.
        buffers: where compressed buffers begin in the body; empty where none is compressed.
    """

    start: int
    head: int
    body: int
    buffers: tuple[int, ...]

    def check(self, what: str, body: bytes, source: SourceConfig) -> None:
        """Check how many bytes its compressed buffers become.

        Raises:
            DataError: too many.
        """
        try:
            sizes = [struct.unpack_from("<q", body, start)[0] for start in self.buffers]
        except struct.error:
            raise DataError(f"{what} is broken; is it complete?") from None
        unpacked = sum(max(size, 0) for size in sizes)
        check_unpacked(what, unpacked, len(body), source)


def read_message(file: IO[bytes], start: int) -> tuple[Message, bytes] | None:
    """The message that comes next, and the bytes of its head; None at the end.

    The file form is a mark of 8 bytes, then a stream, then a footer behind the end of the stream.

    Raises:
        DataError: it is broken.
    """
    head = file.read(4)
    if not start and head == MAGIC[:4]:
        file.read(4)
        start, head = 8, file.read(4)
    if len(head) == 4 and struct.unpack("<I", head)[0] == _CONTINUES:
        head += file.read(4)
    if len(head) < 4 or not (length := struct.unpack("<i", head[-4:])[0]):
        return None
    if not 0 < length <= _MOST_DESCRIBED:
        raise DataError(f"broken Arrow (message at byte {start} of {length:,} bytes)")
    description = file.read(length)
    try:
        return _message(start, head, description), head + description
    except (struct.error, IndexError):
        raise DataError(f"broken Arrow (message at byte {start}); is it complete?") from None


def _message(start: int, head: bytes, description: bytes) -> Message:
    root = _Table.root(description)
    body = root.number(3, "<q")
    if body < 0:
        raise IndexError
    batch = root.table(2)
    if batch is not None and root.number(1, "<B") == _DICTIONARY:
        batch = batch.table(1)
    buffers: tuple[int, ...] = ()
    # Before it was a field of its own, metadata of the message said that buffers are compressed.
    is_batch = root.number(1, "<B") in (_DICTIONARY, _BATCH)
    if is_batch and batch is not None and (batch.has(3) or root.has(4)):
        buffers = tuple(where for where, size in batch.structs(2, _BUFFER) if size >= 8)
    return Message(start, len(head) + len(description), body, buffers)


def messages_of(file: IO[bytes]) -> Iterator[Message]:
    """All messages of a file that can be sought in, from its beginning."""
    start = 0
    while (found := read_message(file, start)) is not None:
        yield found[0]
        start = found[0].start + found[0].head + found[0].body
        file.seek(start)


class CheckedStream:
    """A stream of messages for Arrow to read, each of which is checked before Arrow gets it."""

    closed = False

    def __init__(self, file: IO[bytes], name: str, most: int, source: SourceConfig) -> None:
        self._file, self._name, self._most, self._source = file, name, most, source
        self._ready, self._start = memoryview(b""), 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most as many as are left of a message."""
        parts = []
        while size and (self._ready or self._next()):
            part = self._ready[: size if size > 0 else None]
            self._ready = self._ready[len(part) :]
            size -= len(part) if size > 0 else 0
            parts.append(part)
        return b"".join(parts)

    def _next(self) -> bool:
        try:
            found = read_message(self._file, self._start)
        except DataError as error:
            raise DataError(f"{self._name} cannot be read: {error}.") from None
        if found is None:
            return False
        message, head = found
        what = f"{self._name}, message at byte {self._start}"
        if message.body > self._most:
            raise DataError(f"{what}: its {message.body:,} bytes are more than the file may hold.")
        body = self._file.read(message.body)
        message.check(what, body, self._source)
        self._ready = memoryview(head + body)
        self._start = message.start + message.head + message.body
        return True


class _Table:
    """A table of a flatbuffer: its fields by their numbers."""

    def __init__(self, data: bytes, at: int) -> None:
        if not 0 <= at < len(data):
            raise IndexError
        self._data, self._at = data, at
        self._fields = at - self._read("<i", at)
        self._size = self._read("<H", self._fields)

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        """The table that a flatbuffer is."""
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def has(self, field: int) -> bool:
        """Whether a field is there."""
        return bool(self._place(field))

    def number(self, field: int, form: str) -> int:
        """A number; 0 where it is not there."""
        place = self._place(field)
        return self._read(form, place) if place else 0

    def table(self, field: int) -> "_Table | None":
        """A table inside."""
        place = self._place(field)
        return _Table(self._data, place + self._read("<I", place)) if place else None

    def structs(self, field: int, form: struct.Struct) -> Iterator[tuple[int, ...]]:
        """The structs of a list."""
        if not (place := self._place(field)):
            return
        start = place + self._read("<I", place)
        for number in range(self._read("<I", start)):
            at = start + 4 + number * form.size
            if at < 0 or at + form.size > len(self._data):
                raise IndexError
            yield form.unpack_from(self._data, at)

    def _place(self, field: int) -> int:
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        offset = self._read("<H", self._fields + entry)
        return self._at + offset if offset else 0

    def _read(self, form: str, at: int) -> Any:
        if at < 0:
            raise IndexError
        return struct.unpack_from(form, self._data, at)[0]
