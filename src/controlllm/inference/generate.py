"""Streaming generation, and a KV cache that lives from one turn to the next."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from controlllm.common.errors import DataError, ModelError
from controlllm.common.text.progress import progress
from controlllm.data.examples.special import SpecialNames
from controlllm.inference.decoding import TextDecoder
from controlllm.inference.settings import GenerationSettings

__all__ = ["Generator", "last_logits", "prompt_ids", "text_ids"]

PART_TOKENS = 2048
"""Longer prompts are read in parts of so many tokens."""


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    render: Callable[[Sequence[Mapping[str, Any]]], str] | None = None,
) -> Tensor:
    """The token ids (1, T) after which the model writes its next turn.

    With a chat template the conversation is rendered by it. Without one the turns are simply put
    one after another, and the model continues the text: what a base model is able to do. Names of
    special tokens inside the turns are text: only the template begins and ends turns.

    Args:
        tokenizer: a fast one.
        messages: the turns.
        render: renders them in the tokenizer's place; it has raised a DataError of its own.

    Raises:
        ModelError: the tokenizer is slow.
        DataError: the template refuses the conversation, or the tokenizer cannot take the name of
            a special token as text.
    """
    if not tokenizer.chat_template:
        return text_ids(tokenizer, "".join(message["content"] for message in messages))
    names = _special_names(tokenizer)
    render = render or partial(_render, tokenizer)
    if not names.stand_in(messages):
        return torch.tensor([tokenizer(render(messages), add_special_tokens=False).input_ids])
    text = names.reveal(render(names.hide(messages)))[0]
    return torch.tensor([names.encode(text, add_special_tokens=False)])


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """The token ids (1, T) of a text to be continued; names of special tokens in it are text.

    Raises:
        ModelError: the tokenizer is slow.
        DataError: the tokenizer cannot take the name of a special token as text.
    """
    names = _special_names(tokenizer)
    if names.stand_in(text):
        return torch.tensor([names.encode(text, add_special_tokens=True)])
    return torch.tensor([tokenizer(text, add_special_tokens=True).input_ids])


def _special_names(tokenizer: PreTrainedTokenizerBase) -> SpecialNames:
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} cannot tell text from special tokens by its "
            "place; load the fast tokenizer."
        )
    return SpecialNames.of(tokenizer)


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> str:
    conversation: Any = list(messages)
    try:
        rendered = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # A template is somebody's program, and may raise anything.
        raise DataError(
            f"the chat template refuses the conversation ({type(error).__name__}: {error}); "
            "name another one by --chat_template, or none."
        ) from error
    return str(rendered)


def last_logits(model: Any, keep: int = 1) -> dict[str, int]:
    """Arguments of a forward pass that computes logits of the last positions only, if it can."""
    known = signature(model.forward).parameters
    return {"logits_to_keep": keep} if "logits_to_keep" in known else {}


class Generator:
    """Writes with one model, keeping the KV cache for as long as the text goes on."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: GenerationSettings | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings or GenerationSettings()
        self.cached_tokens = 0
        self._cache: Any = None
        self._cached_ids: list[int] = []

    def forget(self) -> None:
        """Drop the KV cache: it belongs to the weights and the alpha it was computed with."""
        self._cache, self._cached_ids = None, []

    @torch.no_grad()
    def write(self, ids_BT: Tensor, on_text: Callable[[str], None] = lambda text: None) -> str:
        """Continue `ids_BT` (1, T).

        Args:
            ids_BT: the prompt; what of its beginning the cache holds is not computed again.
            on_text: is given each piece of text as soon as it is whole.

        Returns:
            The new text, without special tokens.
        """
        if self.settings.seed is not None:
            torch.manual_seed(self.settings.seed)
        ids_BT = ids_BT.to(self.model.device)
        cache = self._read(ids_BT, self._take_cache(ids_BT))
        stream = _Streamer(self.tokenizer, on_text)
        model: Any = self.model
        tokenizer, padding = self.tokenizer, self.tokenizer.pad_token_id
        output = model.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            past_key_values=cache,
            pad_token_id=tokenizer.eos_token_id if padding is None else padding,
            streamer=stream,
            return_dict_in_generate=True,
            **self.settings.arguments(),
        )
        ids = output.sequences[0].tolist()
        # The last token was written but never read by the model.
        self._cache, self._cached_ids = output.past_key_values, ids[:-1]
        return stream.text

    def _read(self, ids_BT: Tensor, cache: Any) -> Any:
        """The cache of all of a long prompt but its end, read in parts: it shows how far it is."""
        begin, end = self.cached_tokens, ids_BT.shape[1] - 1
        if end - begin <= PART_TOKENS:
            return cache
        model: Any = self.model
        few = last_logits(model)
        with progress("reading the prompt", "tokens", end - begin) as line:
            for start in range(begin, end, PART_TOKENS):
                stop = min(start + PART_TOKENS, end)
                part = ids_BT[:, start:stop]
                output = model(part, past_key_values=cache, use_cache=True, **few)
                cache = getattr(output, "past_key_values", None)
                if cache is None:  # A model whose memory is no such cache reads it all at once.
                    return None
                line.show(stop - begin)
        return cache

    def _take_cache(self, ids_BT: Tensor) -> Any:
        """The cache if the prompt begins with exactly its tokens, else None; `forget` meanwhile.

        An interrupted `generate` leaves a cache that has grown: it must not be found afterwards.
        """
        cache, cached = self._cache, self._cached_ids
        self.forget()
        fits = cache is not None and len(cached) < ids_BT.shape[1]
        if not fits or ids_BT[0, : len(cached)].tolist() != cached:
            self.cached_tokens = 0
            return None
        self.cached_tokens = len(cached)
        return cache


class _Streamer(BaseStreamer):
    """Gives each piece of text to a function, as `generate` writes its tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.text = ""
        self._decoder: TextDecoder | None = None

    def put(self, value: Tensor) -> None:
        """Called by `generate`: first with the prompt, then with each token."""
        ids = value.flatten().tolist()
        if self._decoder is None:
            self._decoder = TextDecoder(self.tokenizer, ids)
            return
        for token in ids:
            self._give(self._decoder.add(token))

    def end(self) -> None:
        """Called by `generate` after the last token."""
        if self._decoder is not None:
            self._give(self._decoder.end())

    def _give(self, piece: str) -> None:
        self.text += piece
        if piece:
            self.on_text(piece)
