"""One question to base and tuned model, one after the other, and where their answers part."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from controlllm.common.adapters import as_base, carries_base
from controlllm.common.errors import ModelError
from controlllm.inference.compare import (
    TokenChange,
    answered_chat,
    answered_text,
    mean_kl,
    token_changes,
)
from controlllm.inference.generate import Generator, text_ids

__all__ = ["answer_both", "say_where_they_part"]

MOST_TOLD = 3
"""So many tokens are told, those with the largest KL."""


def answer_both(
    generator: Generator,
    ids_BT: Tensor,
    messages: Sequence[Mapping[str, Any]],
    write: Callable[[str], None],
    name: str = "tuned",
) -> None:
    """Write the base's answer, the tuned model's, and for each its KL(base || tuned) per token.

    Args:
        generator: of the model, which answers as its dial stands; its KV cache is forgotten.
        ids_BT: the tokens (1, T) of the conversation.
        messages: the conversation.
        write: where text goes.
        name: what the tuned model is called.

    Raises:
        ModelError: the model carries no base.
    """
    model, tokenizer = generator.model, generator.tokenizer
    if not carries_base(model):
        raise ModelError("This model has no expansion and no adapters: it has no base to compare.")
    prompt: list[int] = ids_BT[0].tolist()
    for side, inside in (("base", as_base(model)), (name, nullcontext())):
        generator.forget()
        write(f"[{side}] ")
        with inside:
            answer = generator.write(ids_BT, write)
        if tokenizer.chat_template:
            ids, start = answered_chat(tokenizer, prompt, answer)
        else:
            text = "".join(message["content"] for message in messages) + answer
            ids, start = answered_text(prompt, text_ids(tokenizer, text)[0].tolist())
        changes = token_changes(model, tokenizer, ids, start)
        write(f"\n({say_where_they_part(changes)})\n")
    generator.forget()


def say_where_they_part(changes: Sequence[TokenChange]) -> str:
    """Mean KL(base || tuned), and the tokens at which it is largest, in a sentence."""
    if not changes:
        return "no tokens to compare"
    largest = sorted(changes, key=lambda change: -change.kl)[:MOST_TOLD]
    places = ", ".join(
        f"{change.text!r} {change.kl:.2f} (base {change.base_choice.text!r}"
        f" {change.base_choice.probability:.0%}, tuned {change.tuned_choice.text!r}"
        f" {change.tuned_choice.probability:.0%})"
        for change in largest
    )
    return (
        f"KL(base || tuned) {mean_kl(changes):.3f} nats per token, {len(changes)} tokens; "
        f"most at {places}"
    )
