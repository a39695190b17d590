"""Between nested dicts, YAML and dataclasses: strict about names and types.

The CLI parses with jsonargparse; this small builder serves Python users and resumed runs, and
needs PyYAML only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from controlllm.common.errors import ConfigError
from controlllm.common.schema import build

__all__ = ["build", "merge", "read_yaml", "write_yaml"]


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


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: if the file is missing, is no YAML or holds no mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the run file {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, found {type(values).__name__}.")
    return values


def write_yaml(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as YAML, keys in their given order."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")
