"""The answer in a text that a model wrote; None where there is none that can be told for sure.

Lenient readings use these: they find the answer wherever it stands, but take no text for an answer
that only mentions one. What each must not accept is tested beside what it must.
"""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from controlllm.common.registry import Registry

__all__ = ["EXTRACTORS", "boxed", "last_line", "letter", "number"]

EXTRACTORS: Registry[Callable[[str], str | None]] = Registry("extractor")
"""By name; `extract:NAME` in a suite."""

LONGEST = 100_000
"""Characters of an answer that are looked at, from its end: patterns must not run away."""

_NUMBER = re.compile(r"(?<![\w.])[-−+]?\s?[$€£¥]?\s?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w]|\.\d)")
_ANSWER_IS = re.compile(
    r"(?:final\s+answer|answer|answer\s+choice|答案|選擇|选择)"
    r"(?:\s+(?:is|would\s+be|should\s+be)|[是为為])?\s*[:：]?\s*",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"[\s(（\[*{`\"']*([A-J])(?![A-Za-z0-9'’&])[\s)）\].*}`\"',:：;。，]*", re.ASCII
)
_ALONE = re.compile(r"^[\s(（\[*]*([A-J])[)）\].:*]*(?:\s|$)")


@EXTRACTORS.register("number")
def number(text: str) -> str | None:
    """The last number of a text, without thousands' commas, currency and trailing zeros.

    A number that is part of a word ("B52", "x2"), of a date or of a version is none.

    >>> number("He pays $1,200.50 for 3 of them. The answer is 1,234.00.")
    '1234'
    >>> number("see section 1.2.3 of A4") is None
    True
    """
    marked = text[-LONGEST:].rpartition("####")[2] if "####" in text[-LONGEST:] else text[-LONGEST:]
    found = list(_NUMBER.finditer(marked))
    if not found:
        return None
    last = found[-1]
    sign = "-" if last.group().lstrip()[0] in "-−" else ""
    try:
        value = Decimal(sign + last.group(1).replace(",", "") + (last.group(2) or ""))
    except InvalidOperation:
        return None
    plain = format(value.normalize(), "f")
    return "0" if plain in ("-0", "0") else plain


@EXTRACTORS.register("letter")
def letter(text: str) -> str | None:
    """The letter of a choice: after "the answer is", or standing first, or alone on the last line.

    A letter that begins a word or is an article ("A man walks") is none, and neither is one of
    several that are only listed.

    >>> letter("Both look fine, but the answer is (C).")
    'C'
    >>> letter("A man walks into a bar") is None
    True
    """
    text = text[-LONGEST:]
    for marker in reversed(list(_ANSWER_IS.finditer(text))):
        if (found := _LETTER.match(text, marker.end())) and _ends(text, found):
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


@EXTRACTORS.register("boxed")
def boxed(text: str) -> str | None:
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


@EXTRACTORS.register("last_line")
def last_line(text: str) -> str | None:
    r"""The last line that is not empty, without spaces, emphasis and a full stop around it.

    >>> last_line("First,\nthen\n**Yes.**\n")
    'Yes'
    """
    lines = [
        line.strip().strip("*_`").strip().rstrip(".。") for line in text[-LONGEST:].splitlines()
    ]
    return next((line for line in reversed(lines) if line), None)


def _ends(text: str, found: re.Match[str]) -> bool:
    """Whether a letter after "the answer is" stands for itself; "A" and "I" may begin a clause."""
    told = found.group()
    closed = told.strip()[-1] != found.group(1) or "\n" in told
    return closed or found.group(1) not in "AI" or not re.match(r"\w", text[found.end() :])
