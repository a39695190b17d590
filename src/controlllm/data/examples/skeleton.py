"""Conversations of the same roles differ only in their contents: render the template once for them.

A template is rendered with *probes* in place of the contents. A probe lets itself be written,
joined and stripped; it answers the questions that templates ask of contents (does it begin with
this text, does it hold it?) with "no" and notes them; anything else means that the template looks
too closely. If nothing else was asked, the rendered text is constant but for the contents, and
every conversation of these roles whose contents are not blank and answer the noted questions in the
same way is that text with its own contents filled in: a join instead of a template, at a small part
of its cost.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from controlllm.data.examples.spans import Span

__all__ = ["Skeleton", "make_skeleton"]

_OPEN, _CLOSE, _PAD = "\ue0f2", "\ue0f3", "\u2003"
# Quotes, slashes, angle brackets and capitals show escaping and changes of case.
_INSIDE = "Aa\"\\'<&\nz"
_SLOT = re.compile(f"({_PAD}?){_OPEN}(\\d+){re.escape(_INSIDE)}{_CLOSE}({_PAD}?)")


class _Content(NamedTuple):
    """A message's content, as a template uses it."""

    number: int
    left: bool = False
    """Stripped of white space on the left."""
    right: bool = False
    """And on the right."""

    def of(self, contents: Sequence[str]) -> str:
        text = contents[self.number]
        text = text.lstrip() if self.left else text
        return text.rstrip() if self.right else text


Question = tuple[_Content, str, Any]
"""(content, predicate, argument): asked by a template, answered "no"."""


class _LookedTooClosely(Exception):
    """The template does with a content what a probe cannot answer."""


class _Written(str):
    """A text with a probe in it: it may be joined and stripped, and nothing else."""

    def __str__(self) -> str:
        return str.__str__(self)

    def __add__(self, other: str) -> "_Written":
        return _Written(str.__add__(self, other))

    def __radd__(self, other: str) -> "_Written":
        return _Written(str.__add__(other, self))

    def __bool__(self) -> bool:
        return True  # No content is blank, or the skeleton is not used.

    def lstrip(self, chars: str | None = None) -> "_Written":
        return _Written(str.lstrip(self)) if chars is None else _refuse()

    def rstrip(self, chars: str | None = None) -> "_Written":
        return _Written(str.rstrip(self)) if chars is None else _refuse()

    def strip(self, chars: str | None = None) -> "_Written":
        return self.lstrip(chars).rstrip(chars)


class _Probe(_Written):
    """A content that notes what it is asked."""

    content: "_Content"
    asked: list[Question]

    @classmethod
    def of(cls, text: str, content: "_Content", asked: list[Question]) -> "_Probe":
        probe = cls(text)
        probe.content, probe.asked = content, asked
        return probe

    def lstrip(self, chars: str | None = None) -> "_Probe":
        if chars is None:
            return _Probe.of(str.lstrip(self), self.content._replace(left=True), self.asked)
        self._no("startswith", tuple(chars))  # The content is taken to begin with none of them.
        return self

    def rstrip(self, chars: str | None = None) -> "_Probe":
        if chars is None:
            return _Probe.of(str.rstrip(self), self.content._replace(right=True), self.asked)
        self._no("endswith", tuple(chars))
        return self

    def __contains__(self, text: object) -> bool:
        return self._no("holds", text)

    def startswith(self, text: Any, *bounds: Any) -> bool:
        return self._no("startswith", text, bounds)

    def endswith(self, text: Any, *bounds: Any) -> bool:
        return self._no("endswith", text, bounds)

    def _no(self, predicate: str, text: Any, bounds: tuple[Any, ...] = ()) -> bool:
        if bounds or not isinstance(text, str | tuple) or not text:
            raise _LookedTooClosely
        self.asked.append((self.content, predicate, text))
        return False


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise _LookedTooClosely


_LEFT_ALONE = {"__new__", "__init__", "__class__", "__getattribute__", "__doc__", "__repr__"}
_LEFT_ALONE |= {"__init_subclass__", "__subclasshook__", "__reduce__", "__reduce_ex__", "__dir__"}
_LEFT_ALONE |= {"__getstate__", "__setattr__", "__delattr__", "__sizeof__"}
for _name in set(dir(str)) - _LEFT_ALONE - set(vars(_Written)):
    setattr(_Written, _name, _refuse)

_ANSWERS: dict[str, Callable[[str, Any], bool]] = {
    "holds": lambda content, text: text in content,
    "startswith": str.startswith,
    "endswith": str.endswith,
}


@dataclass(frozen=True)
class Skeleton:
    """What conversations of the same roles have in common."""

    parts: tuple[str | _Content, ...]
    """Constant texts, and contents."""
    ends: tuple[tuple[int, int], ...]
    """For each start and end of a span: the part it lies in, and where in it."""
    questions: tuple[Question, ...]
    """What must be answered "no" of the contents."""

    def fill(self, contents: Sequence[str]) -> tuple[str, list[Span]] | None:
        """The rendered conversation and its spans; None where its contents change more."""
        if not all(map(str.strip, contents)):
            return None
        for content, ask, text in self.questions:
            if _ANSWERS[ask](content.of(contents), text):
                return None
        texts = [part if isinstance(part, str) else part.of(contents) for part in self.parts]
        starts = [0, *accumulate(map(len, texts))]
        places = [starts[part] + offset for part, offset in self.ends]
        return "".join(texts), list(zip(places[::2], places[1::2], strict=True))


def make_skeleton(
    roles: Sequence[str],
    render: Callable[[list[dict[str, Any]]], str],
    with_spans: Callable[[list[dict[str, Any]]], Any],
) -> Skeleton | None:
    """Find what conversations of some roles have in common.

    `render` hands contents to the template as the objects they are, `with_spans` renders messages
    of plain text to a `text` and its `spans`. None where the template treats contents in a way that
    cannot be known beforehand.
    """
    asked: list[Question] = []
    texts = [f"{_PAD}{_OPEN}{i}{_INSIDE}{_CLOSE}{_PAD}" for i in range(len(roles))]
    probes = [_Probe.of(text, _Content(i), asked) for i, text in enumerate(texts)]
    try:
        text = render([{"role": r, "content": c} for r, c in zip(roles, probes, strict=True)])
        plain = with_spans([{"role": r, "content": c} for r, c in zip(roles, texts, strict=True)])
    # A template refuses by any error of its own; the slow way then tells the user why.
    except Exception:
        return None
    parts = _parts(text)
    if parts is None or text != plain.text:
        return None
    ends = [_place(place, parts) for span in plain.spans or () for place in span]
    known = [place for place in ends if place is not None]
    if len(known) < len(ends):
        return None
    return Skeleton(tuple(part for part, _ in parts), tuple(known), tuple(dict.fromkeys(asked)))


def _parts(text: str) -> list[tuple[str | _Content, int]] | None:
    """Constants and contents in order, each with its length in the probed text."""
    parts: list[tuple[str | _Content, int]] = []
    end = 0
    for match in _SLOT.finditer(text):
        parts.append((text[end : match.start()], match.start() - end))
        content = _Content(int(match[2]), left=not match[1], right=not match[3])
        parts.append((content, match.end() - match.start()))
        end = match.end()
    parts.append((text[end:], len(text) - end))
    if any(isinstance(part, str) and (_OPEN in part or _CLOSE in part) for part, _ in parts):
        return None
    return parts


def _place(place: int, parts: Sequence[tuple[str | _Content, int]]) -> tuple[int, int] | None:
    """A place of the probed text as (part, offset); None inside a content."""
    start = 0
    for number, (part, length) in enumerate(parts):
        if place == start or (isinstance(part, str) and place <= start + length):
            return number, place - start
        start += length
    return (len(parts), 0) if place == start else None
