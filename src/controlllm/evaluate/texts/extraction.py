"""The answer inside a text that a model wrote, by name; None where none can be told for sure.

`exact_match` compares what these find, and a suite's lenient reading (`extract:letter`). They find
an answer wherever it stands, but take no text for an answer that only mentions one: what each must
not accept is tested beside what it must.
"""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import TypeAlias

from controlllm.common.registry import Registry

__all__ = ["EXTRACTORS", "Extract", "register_extractor"]

Extract: TypeAlias = Callable[[str, str], str | None]
"""(text, marker) -> the answer, or None; most have no use for the marker."""

EXTRACTORS: Registry[Extract] = Registry("extractor")
"""Extractors by name."""

register_extractor = EXTRACTORS.register

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])(?<!\d,)[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\d|[.,]\d|[eE][-+]?\d)"
)
"""A number that begins by itself: no part of `x2`, `1.2.3` or `12,34`; units may follow it."""


LONGEST = 100_000
"""Characters of a text that are looked at, from its end: patterns must not run away."""
_ANSWER_IS = re.compile(
    r"(?:final\s+answer|answer|answer\s+choice|答案|選擇|选择)"
    r"(?:\s+(?:is|would\s+be|should\s+be)|[是为為])?\s*[:：]?\s*",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"[\s(（\[*{`\"']*([A-J])(?![A-Za-z0-9'’&])[\s)）\].*}`\"',:：;。，]*", re.ASCII
)
_ALONE = re.compile(r"^[\s(（\[*]*([A-J])[)）\].:*]*(?:\s|$)")


@register_extractor("whole")
def whole(text: str, marker: str = "") -> str | None:
    """The text without white space around it."""
    return text.strip() or None


@register_extractor("last_number")
def last_number(text: str, marker: str = "") -> str | None:
    """The last number, as plain digits: `$1,200.50` and `1200.5` are the same."""
    found = _NUMBER.findall(_narrow(text[-LONGEST:]))
    return _plain(found[-1]) if found else None


@register_extractor("after_marker")
def after_marker(text: str, marker: str = "") -> str | None:
    """What follows the last marker on its line, such as `#### 42`; a number as plain digits."""
    _, found, rest = text.rpartition(marker)
    answer = rest.strip().splitlines()[0].strip() if found and rest.strip() else ""
    narrow = _narrow(answer).strip("$€£¥ .。")
    return (_plain(narrow) if _NUMBER.fullmatch(narrow) else answer) or None


@register_extractor("letter")
def letter(text: str, marker: str = "") -> str | None:
    """The letter of a choice: after "the answer is", or standing first, or alone on the last line.

    A letter that begins a word or is an article ("A man walks") is none, and neither is one of
    several that are only listed.

    >>> letter("Both look fine, but the answer is (C).")
    'C'
    >>> letter("A man walks into a bar") is None
    True
    """
    text = text[-LONGEST:]
    for said in reversed(list(_ANSWER_IS.finditer(text))):
        if (found := _LETTER.match(text, said.end())) and _ends(text, found):
            return found.group(1)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    for line in (lines[0], lines[-1]):
        if found := re.fullmatch(r"[\s(（\[*]*([A-J])[\s)）\].:：。*]*", line):
            return found.group(1)
    first = re.match(r"[\s(（\[*]*([A-J])\s?[)）\].:：]", lines[0])
    listed = len({found.group(1) for line in lines if (found := _ALONE.match(line))}) > 1
    return first.group(1) if first and not listed else None


@register_extractor("answer")
def answer(text: str, marker: str = "") -> str | None:
    r"""What follows the last "the answer is" on its line, without a full stop; else the last line.

    >>> answer("Let us see. So the answer is (B).\nQ: and"), answer("True")
    ('(B)', 'True')
    """
    said = list(_ANSWER_IS.finditer(text[-LONGEST:]))
    rest = text[-LONGEST:][said[-1].end() :].splitlines() if said else []
    return last_line(rest[0] if rest and rest[0].strip() else text, marker)


@register_extractor("boxed")
def boxed(text: str, marker: str = "") -> str | None:
    r"""What stands in the last `\boxed{...}` of a text, whose braces must be closed.

    >>> boxed(r"so \boxed{1} or rather \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    >>> boxed(r"\boxed{\frac{1}{2}") is None
    True
    """
    text = text[-LONGEST:]
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place].strip() or None
    return None


@register_extractor("last_line")
def last_line(text: str, marker: str = "") -> str | None:
    r"""The last line that is not empty, without spaces, emphasis and a full stop around it.

    >>> last_line("First,\nthen\n**Yes.**\n")
    'Yes'
    """
    lines = [
        line.strip().strip("*_`").strip().rstrip(".。") for line in text[-LONGEST:].splitlines()
    ]
    return next((line for line in reversed(lines) if line), None)


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


def _ends(text: str, found: re.Match[str]) -> bool:
    """Whether a letter after "the answer is" stands for itself; "A" and "I" may begin a clause."""
    told = found.group()
    closed = told.strip()[-1] != found.group(1) or "\n" in told
    return closed or found.group(1) not in "AI" or not re.match(r"\w", text[found.end() :])
