"""Facts about settings that stand with their fields, for whoever parses, compares or shows them."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

__all__ = ["RUNS_CODE", "settings_with", "value_at"]

RUNS_CODE = {"runs_code": True}
"""Metadata of a field that lets somebody's code run: a file may name it, a person consents."""


def settings_with(cls: type, fact: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of a dataclass's settings, sections included, whose metadata hold a fact."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        if is_dataclass(hints[field.name]):
            yield from settings_with(hints[field.name], fact, f"{prefix}{field.name}.")
        elif fact.items() <= field.metadata.items():
            yield prefix + field.name


def value_at(values: Any, name: str) -> Any:
    """The value of a dotted setting in nested mappings; None where there is none."""
    for part in name.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values
