"""Whatever goes wrong while a file is read, told with its name, what happened and what to do."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from controlllm.common.errors import DataError
from controlllm.common.storage.remote import http_status, is_remote, shown
from controlllm.common.text.secrets import hidden

__all__ = ["causes", "describe", "reading"]


@contextmanager
def reading(address: str) -> Iterator[None]:
    """Turn the errors of disks, networks and unpackers into a `DataError` that names `address`."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, EOFError, zlib.error, ArrowException) as error:
        raise DataError(describe(error, address)) from error


def describe(error: BaseException, address: str) -> str:
    """One sentence: the address, what happened, what to do."""
    name, text = shown(address), " ".join(hidden(error).split()) or type(error).__name__
    if "standby" in text.lower():
        return f"{name}: the name node is on standby; give the address of the active one ({text})."
    status = http_status(error)
    if isinstance(error, PermissionError) or status in (401, 403):
        return (
            f"{name} may not be read ({text}); ask for access, or say who asks in "
            "`storage_options` (user, token, keys)."
        )
    missing = isinstance(error, FileNotFoundError) or status == 404
    if missing and not _is_unreachable(error):
        return f"{name} is not there ({text}); check the address."
    if isinstance(error, TimeoutError):
        return f"{name} did not answer in time ({text}); `data.timeout` is how long to wait."
    if isinstance(error, IsADirectoryError):
        return f"{name} is a folder, where a file is expected."
    if _is_unreachable(error):
        return f"{name} cannot be reached ({text}); check host and port, and that the server runs."
    remedy = "check the server and run again." if is_remote(address) else "is it complete?"
    return f"{name} cannot be read to its end ({text}); {remedy}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _is_unreachable(error: BaseException) -> bool:
    names = ("ClientConnectorError", "ConnectionRefusedError", "ServerDisconnectedError")
    return any(type(cause).__name__ in names for cause in causes(error))
