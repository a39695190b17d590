"""Messages of Arrow's IPC forms, looked at before Arrow unpacks them.

A message is a description (a flatbuffer, which Arrow verifies) and a body of buffers. Where these
are compressed, each begins with the number of bytes that it becomes, which may be anything.
"""

import struct
from typing import IO, Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.limits import check_unpacked

__all__ = ["MAGIC", "CheckedStream", "packed_buffers"]

MAGIC = b"ARROW1\0\0"
"""The file form is this, then a stream, then a footer behind the end of the stream."""

_INNER_BATCH, _BUFFERS, _HEADER, _COMPRESSION, _METADATA = 1, 2, 2, 3, 4
"""Numbers of fields: of a dictionary, a batch, a message, a batch, a message."""


def packed_buffers(message: Any) -> list[int]:
    """Where the compressed buffers of a message begin in its body."""
    if message.type not in ("dictionary", "record batch"):
        return []
    data = message.metadata.to_pybytes()
    root = _target(data, 0)
    batch = _target(data, _field(data, root, _HEADER))
    if message.type == "dictionary":
        batch = _target(data, _field(data, batch, _INNER_BATCH))
    # Before it was a field of its own, metadata of the message said that buffers are compressed.
    if not (_field(data, batch, _COMPRESSION) or _field(data, root, _METADATA)):
        return []
    start = _target(data, _field(data, batch, _BUFFERS))
    (count,) = struct.unpack_from("<I", data, start)
    buffers = struct.iter_unpack("<qq", data[start + 4 : start + 4 + 16 * count])
    return [where for where, size in buffers if size >= 8]


def _target(data: bytes, place: int) -> int:
    """What the offset at a place leads to."""
    return place + int(struct.unpack_from("<I", data, place)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """The place of a field of a table; 0 where it is not there."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    entry = 4 + 2 * number
    if entry + 2 > struct.unpack_from("<H", data, fields)[0]:
        return 0
    (offset,) = struct.unpack_from("<H", data, fields + entry)
    return table + int(offset) if offset else 0


class _Bounded:
    """A file without its mark, of which nothing larger than `most` bytes is read at once."""

    closed = False

    def __init__(self, file: IO[bytes], name: str, most: int) -> None:
        self._file, self._name, self._most = file, name, most
        first = file.read(len(MAGIC))
        self._first = b"" if first == MAGIC else first

    def read(self, size: int) -> bytes:
        if size > self._most:
            raise DataError(
                f"{self._name} cannot be read: its message of {size:,} bytes is too large."
            )
        first, self._first = self._first[:size], self._first[size:]
        return first + self._file.read(size - len(first))


class CheckedStream:
    """A stream of messages for Arrow to read, each of which is checked before Arrow gets it."""

    closed = False

    def __init__(self, file: IO[bytes], name: str, most: int, source: SourceConfig) -> None:
        import pyarrow as pa

        self._name, self._source, self._number = name, source, 0
        self._messages = pa.ipc.MessageReader.open_stream(_Bounded(file, name, most))
        self._ready = memoryview(b"")

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
        message = next(self._messages, None)
        if message is None:
            return False
        what = f"{self._name}, message {self._number}"
        self._number += 1
        starts = packed_buffers(message)
        try:
            sizes = [struct.unpack_from("<q", message.body, start)[0] for start in starts]
        except struct.error:
            raise DataError(f"{what} is broken; is it complete?") from None
        unpacked = sum(max(size, 0) for size in sizes)
        check_unpacked(what, unpacked, len(message.body or b""), self._source)
        self._ready = memoryview(message.serialize())
        return True
