"""Which characters of a rendered conversation belong to which turn, and which tokens those are.

Turns are found by rendering, never by counting or by searching for markers of a certain model:

1. *by prefix*: the conversation up to a turn (with the generation prompt) and up to its end are
   rendered too; where both are prefixes of the whole, the turn is exactly what lies between.
2. *by difference*: some templates render earlier turns differently once later ones follow (they
   drop the reasoning). Then the turn's content is swapped for a mark, and what changed in the
   rendered text is the content.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from itertools import takewhile
from typing import TypeAlias

from controlllm.common.errors import DataError
from controlllm.data.formats import Message

__all__ = ["RenderText", "Span", "role_spans", "shared_length", "token_range"]

Span: TypeAlias = tuple[int, int]
"""Characters [start, end) of the rendered text."""

RenderText: TypeAlias = Callable[[Sequence[Message], bool], str]
"""(messages, add_generation_prompt) -> text; raises `DataError` where the template refuses."""

# Private-use characters: no template looks for them and no content begins or ends with them.
MARK = "\ue0f0\ue0f1"


def role_spans(
    text: str,
    messages: Sequence[Message],
    roles: Collection[str],
    render: RenderText,
    special_tokens: Collection[str] = (),
) -> list[Span]:
    """The spans of the turns whose role is in `roles`, closing token included.

    An assistant's span is what the model must write: it begins after the generation prompt and ends
    with the closing token. The span of any other role holds its header as well.

    White space behind a special token at a turn's end is left out, since no model writes it.

    Args:
        text: the whole conversation as the template of `render` writes it.
        messages: the conversation.
        roles: whose turns.
        render: renders other conversations.
        special_tokens: those of the tokenizer.

    Raises:
        DataError: a turn cannot be found, because the template does not show its content.
    """
    spans = []
    for i, message in enumerate(messages):
        if message["role"] in roles:
            start, end = _by_prefix(text, messages, i, render) or _by_difference(
                text, messages, i, render
            )
            body = text[start:end].rstrip()
            if body.endswith(tuple(special_tokens)):
                end = start + len(body)
            spans.append((start, end))
    return spans


def token_range(chars_of: Callable[[int], Span | None], count: int, span: Span) -> slice:
    """Which of `count` tokens share a character with a span, found by bisection.

    `chars_of` tells the characters [start, end) of a token, which never go back.
    """
    start, end = span
    none = (0, 0)
    first = bisect_right(range(count), start, key=lambda token: (chars_of(token) or none)[1])
    last = bisect_left(range(count), end, lo=first, key=lambda token: (chars_of(token) or none)[0])
    return slice(first, last)


def _try(render: RenderText, messages: Sequence[Message], prompt: bool = False) -> str | None:
    """The rendered text, None where the template refuses it (a system message alone, say)."""
    try:
        return render(messages, prompt)
    except DataError:
        return None


def _by_prefix(text: str, messages: Sequence[Message], i: int, render: RenderText) -> Span | None:
    is_answer = messages[i]["role"] == "assistant"
    before = _try(render, messages[:i], is_answer) if i or is_answer else ""
    until = text if i == len(messages) - 1 else _try(render, messages[: i + 1])
    if before is None or until is None or not (text.startswith(until) and until.startswith(before)):
        return None
    return len(before), len(until)


def _by_difference(text: str, messages: Sequence[Message], i: int, render: RenderText) -> Span:
    start, end = _content_span(text, messages, i, render)
    closing = _closing(messages[i]["role"], render)
    if closing and text.startswith(closing, end):
        end += len(closing)
    if messages[i]["role"] == "assistant" and (prompt := _generation_prompt(render)):
        earliest = _content_span(text, messages, i - 1, render)[1] if i else 0
        found = text.rfind(prompt, earliest, start)
        start = found + len(prompt) if found >= 0 else start
    return start, end


def _content_span(text: str, messages: Sequence[Message], i: int, render: RenderText) -> Span:
    """Where message `i`'s content lies: the part of the text that changes when the content does."""
    marked = render([*messages[:i], {**messages[i], "content": MARK}, *messages[i + 1 :]], False)
    if MARK not in marked:
        raise DataError(
            f"the chat template does not show the content of message {i} ({messages[i]['role']})"
        )
    start = shared_length(text, marked)
    return start, len(text) - shared_length(text[start:][::-1], marked[start:][::-1])


def shared_length(a: str, b: str) -> int:
    """How many characters two texts share at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _closing(role: str, render: RenderText) -> str:
    """What the template writes after the content of a last turn."""
    turns: list[Message] = [{"role": "user", "content": "x"}, {"role": role, "content": MARK}]
    text = _try(render, turns if role == "assistant" else turns[1:])
    return text.partition(MARK)[2] if text else ""


def _generation_prompt(render: RenderText) -> str:
    """What the template writes to ask for an answer."""
    question: list[Message] = [{"role": "user", "content": "x"}]
    without, with_prompt = _try(render, question), _try(render, question, True)
    if without is None or with_prompt is None:
        return ""
    return with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""
