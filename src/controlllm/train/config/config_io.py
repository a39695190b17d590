"""Between nested dicts, YAML and dataclasses: strict about names and types.

The one builder of all settings, from the command line, from files and in Python. It makes nothing
but what the type hints say: no value can name a class to import.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from controlllm.common.errors import ConfigError
from controlllm.common.storage.files import atomic_file
from controlllm.common.storage.schema import build
from controlllm.common.text.secrets import redactions
from controlllm.common.text.yamls import MAX_BYTES, parse_yaml

__all__ = ["build", "flat", "merge", "read_yaml", "require_secrets", "write_yaml"]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` on `base`: dicts are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def flat(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of settings and their values; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def require_secrets(values: Any, name: str) -> None:
    """Check that no value is the placeholder of a secret.

    Raises:
        ConfigError: with the first of them.
    """
    gone = next(redactions(values), None)
    if gone is not None:
        raise ConfigError(
            f"{name}: {gone} is a secret that was left out when the file was written; put it in "
            "again, in a file of your own, or take it out and give it by the environment "
            "(docs/hdfs.md)."
        )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: if the file is missing, holds no mapping, or see `parse_yaml`.
    """
    try:
        with open(path, "rb") as file:
            values = parse_yaml(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read the run file {path}: {error.strerror}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, found {type(values).__name__}.")
    return values


def write_yaml(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as YAML, keys in their given order; only its owner may read the file.

    Raises:
        CheckpointError: if it cannot be written; an older file of that name is then untouched.
    """
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    with atomic_file(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(text, encoding="utf-8")
