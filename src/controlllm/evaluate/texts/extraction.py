"""The answer inside a text, which `exact_match` compares: by name, None where there is none."""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import TypeAlias

from controlllm.common.registry import Registry

__all__ = ["EXTRACTORS", "Extract", "register_extractor"]

Extract: TypeAlias = Callable[[str, str], str | None]
"""(text, marker) -> the answer, or None; most have no use for the marker."""

EXTRACTORS: Registry[Extract] = Registry("evaluation.generation.extractor")
"""Extractors by name."""

register_extractor = EXTRACTORS.register

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])(?<!\d,)[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\d|[.,]\d)"
)
"""A number that begins by itself: no part of `x2`, `1.2.3` or `12,34`; units may follow it."""


@register_extractor("whole")
def whole(text: str, marker: str = "") -> str | None:
    """The text without white space around it."""
    return text.strip() or None


@register_extractor("last_number")
def last_number(text: str, marker: str = "") -> str | None:
    """The last number, as plain digits: `$1,200.50` and `1200.5` are the same."""
    found = _NUMBER.findall(_narrow(text))
    return _plain(found[-1]) if found else None


@register_extractor("after_marker")
def after_marker(text: str, marker: str = "") -> str | None:
    """What follows the last marker on its line, such as `#### 42`; a number as plain digits."""
    _, found, rest = text.rpartition(marker)
    answer = rest.strip().splitlines()[0].strip() if found and rest.strip() else ""
    narrow = _narrow(answer).strip("$€£¥ .。")
    return (_plain(narrow) if _NUMBER.fullmatch(narrow) else answer) or None


def _plain(number: str) -> str:
    """One way of writing a number: no commas, no plus, no zeros at the end."""
    try:
        value = Decimal(number.replace(",", "").replace("−", "-"))
    except InvalidOperation:  # More digits than a decimal takes.
        return number
    plain = format(value, "f")
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain in ("-0", "+0", "") else plain.removeprefix("+")


def _narrow(text: str) -> str:
    """Full-width digits and signs, as Chinese texts may have them, as ASCII."""
    return text.translate(_NARROW)


_NARROW = {0xFF10 + digit: str(digit) for digit in range(10)} | {
    0xFF0B: "+",
    0xFF0C: ",",
    0xFF0D: "-",
    0xFF0E: ".",
}
