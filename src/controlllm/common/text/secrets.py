"""What must not be shown: tokens, passwords, keys; told by the names they stand under.

redacted({"storage_options": {"user": "alice", "token": "abc"}})
# {"storage_options": {"user": "alice", "token": "<redacted>"}}
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["REDACTED", "hidden", "redacted", "redactions", "without_options"]

REDACTED = "<redacted>"
"""Stands for a secret in what is written and shown."""

_SECRET = re.compile(
    r"token|secret|passw|passphrase|credential|api_?key|access_?key|account_?key|private_?key"
    r"|authorization|signature|cookie|connection_string|session_cert",
    re.IGNORECASE,
)
_COUNTS = re.compile(r"tokens|tokenizer|tokenize|_token_id$|pad_token", re.IGNORECASE)
_OPTIONS = re.compile(r"(^|_)storage_options$")
_HARMLESS = (
    # Of what clients are given; any other text there may be a secret under an unlikely name.
    *("user", "username", "host", "port", "protocol", "endpoint_url", "endpoint", "region"),
    *("region_name", "project", "account_name", "proxy_to", "data_proxy", "proxies"),
    "client_kwargs",
)
_USER_INFO = re.compile(r"([A-Za-z][\w+.-]*://)([^/@\s:]*)(:[^/@\s]*)?@")
_QUERY = re.compile(
    r"([?&][\w.-]*(?:token|sig|signature|key|secret|passw\w*|credential|delegation)[\w.-]*=)"
    r"[^&#\s'\")]+",
    re.IGNORECASE,
)


def hidden(text: object) -> str:
    """A text as messages may show it: addresses in it without passwords, tokens and signatures.

    >>> hidden("webhdfs://alice:word@host/a"), hidden("https://host/a?sig=abc&n=1")
    ('webhdfs://alice:***@host/a', 'https://host/a?sig=***&n=1')
    """
    return _QUERY.sub(r"\1***", _USER_INFO.sub(_shown_user, str(text)))


def redacted(value: Any, key: str = "") -> Any:
    """Nested settings without the secrets in them."""
    options = _OPTIONS.search(key) is not None
    if (_is_secret(key) or (options and not isinstance(value, Mapping))) and value:
        return REDACTED
    if isinstance(value, Mapping):
        inner = _option if options else redacted
        return {name: inner(v, str(name)) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return hidden(value) if isinstance(value, str) else value


def redactions(value: Any, where: str = "") -> Iterator[str]:
    """Dotted names of the settings that hold a placeholder instead of a secret."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from redactions(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from redactions(inner, f"{where}[{i}]")
    elif isinstance(value, str) and (
        value == REDACTED or re.search(r":\*\*\*@|//\*\*\*@|=\*\*\*", value)
    ):
        yield where


def without_options(value: Any) -> Any:
    """Nested settings without `storage_options`: who asks is no part of what is read."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if not _OPTIONS.search(str(k))}
        return {k: without_options(v) for k, v in kept.items()}
    return [without_options(item) for item in value] if isinstance(value, list | tuple) else value


def _option(value: Any, key: str) -> Any:
    """One option of a client."""
    if isinstance(value, Mapping):
        return {name: _option(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, bool | int | float | None) and not _is_secret(key):
        return value
    return hidden(value) if key in _HARMLESS and isinstance(value, str) else REDACTED


def _is_secret(key: str) -> bool:
    return _SECRET.search(key) is not None and _COUNTS.search(key) is None


def _shown_user(match: re.Match[str]) -> str:
    scheme, user, password = match.groups()
    web = scheme.lower() in ("http://", "https://")  # A name alone is mostly a token there.
    if password is None:
        return f"{scheme}***@" if web and user else match[0]
    return f"{scheme}{user}:***@"
