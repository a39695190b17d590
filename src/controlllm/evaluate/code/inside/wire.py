"""Plain values as JSON between judge and worker; a message is its length and its bytes.

None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, range and the types
of these go over as what they are; subclasses (Counter, defaultdict, namedtuple, an IntEnum) as what
they are made of. Anything else stays where it is, and a number goes over in its place: nothing that
is read can hold code. So a value with an `__eq__` of its own arrives as a plain value, or as one
that equals only itself.
"""

import json
import os
import struct
from collections.abc import Callable
from typing import Any

__all__ = ["MOST_BYTES", "Channel", "WireError", "decode", "encode"]

MOST_BYTES = 32 << 20
"""The largest message."""
_JSON_INTEGER = 1 << 53
_TYPES = {
    one.__name__: one
    for one in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, range)
}
_SEQUENCES = {"tuple": tuple, "set": set, "frozenset": frozenset}


class WireError(Exception):
    """What the other side sent is no message."""


class Channel:
    """Messages over two pipes."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            WireError: it is too large.
            OSError: nobody reads.
        """
        body = json.dumps(message).encode()
        if len(body) > MOST_BYTES:
            raise WireError(f"a message of {len(body):,} bytes; at most {MOST_BYTES:,} go over")
        rest = memoryview(struct.pack(">I", len(body)) + body)
        while rest:
            rest = rest[os.write(self._write, rest) :]

    def receive(self) -> dict[str, Any] | None:
        """The next message; None where the other side has closed.

        Raises:
            WireError: what came is no message.
        """
        head = self._exactly(4)
        if head is None:
            return None
        (length,) = struct.unpack(">I", head)
        body = self._exactly(length) if length <= MOST_BYTES else None
        if body is None:
            raise WireError("a message that is too long, or breaks off")
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise WireError(f"no JSON: {error}") from None
        if not isinstance(message, dict):
            raise WireError("no message, but another value")
        return message

    def _exactly(self, count: int) -> bytes | None:
        """So many bytes; None where there are not as many."""
        parts: list[bytes] = []
        while count:
            part = os.read(self._read, min(count, 1 << 20))
            if not part:
                return None
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """A value as JSON can hold it.

    Args:
        value: any value.
        keep: called with a value that is not plain; returns the number that stands for it.

    Raises:
        RecursionError: it is nested too deeply, or contains itself.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int.__int__(value)
        return number if abs(number) < _JSON_INTEGER else {"int": hex(number)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encode(one, keep) for one in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [encode(one, keep) for one in tuple.__iter__(value)]}
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {"dict": [[encode(key, keep), encode(one, keep)] for key, one in pairs]}
    return _encode_rare(value, keep)


def _encode_rare(value: Any, keep: Callable[[Any], int]) -> Any:
    """The rest of `encode`."""
    if isinstance(value, set | frozenset):
        kind: Any = set if isinstance(value, set) else frozenset
        return {kind.__name__: [encode(one, keep) for one in kind.__iter__(value)]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).decode("latin-1")}
    if isinstance(value, range):
        return {"range": [encode(one, keep) for one in (value.start, value.stop, value.step)]}
    if any(value is one for one in _TYPES.values()):
        return {"plain type": value.__name__}
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        return encode(value.item(), keep)  # a scalar
    return {"kept": keep(value), "type": type(value).__name__[:100]}


def decode(data: Any, find: Callable[[int, str], Any]) -> Any:
    """The value that `encode` wrote, or something like it that a stranger wrote.

    Args:
        data: what JSON held.
        find: what stands for a value that stayed on the other side, by number and type's name.

    Raises:
        WireError: no value is written like this.
        RecursionError: it is nested too deeply.
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return [decode(one, find) for one in data]
    try:
        return _decode_tagged(data, find)
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"no value: {error}") from None


def _decode_tagged(data: dict[str, Any], find: Callable[[int, str], Any]) -> Any:
    """The rest of `decode`: a value with its type."""
    if "kept" in data:
        return find(int(data["kept"]), str(data.get("type", "")))
    ((kind, body),) = data.items()
    if kind == "int":
        return int(body, 16)
    if kind == "dict":
        return {decode(key, find): decode(one, find) for key, one in body}
    if kind == "complex":
        return complex(*map(float, body))
    if kind == "plain type":
        return _TYPES[body]
    if kind == "bytes":
        return body.encode("latin-1")
    if kind == "range":
        return range(*[int(decode(one, find)) for one in body])
    return _SEQUENCES[kind](decode(one, find) for one in body)
