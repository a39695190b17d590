"""One text being written: the prompt is read in parts, then each step writes one token."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from controlllm.checkpoint.models.export.chat_facts import eos_ids
from controlllm.inference.engine.caches import CacheStore
from controlllm.inference.engine.protocol import Piece, Request, Usage, Voice
from controlllm.inference.engine.sampling import choose_token, make_generator
from controlllm.inference.engine.text import TextWriter
from controlllm.inference.engine.work import Work
from controlllm.inference.generate import last_logits

__all__ = ["Desk", "Writing"]

PART_TOKENS = 512
"""A prompt is read in parts of so many tokens: between two of them others get their turn."""


class Desk:
    """What all writings share: the model, its tokenizer, its dial, the caches of earlier texts.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        speak_as: lets the model be a voice.
        caches: where KV caches wait for the next turn.
    """

    def __init__(
        self, model: Any, tokenizer: Any, speak_as: Callable[[Voice], None], caches: CacheStore
    ) -> None:
        self.model, self.tokenizer, self.speak_as = model, tokenizer, speak_as
        self.caches = caches
        self.ends = _end_ids(model, tokenizer)
        self._few = last_logits(model)

    def new_cache(self) -> Any:
        """An empty KV cache with a slot for every branch."""
        return DynamicCache(config=self.model.config.get_text_config())

    def logits(self, ids: tuple[int, ...], cache: Any) -> Tensor:
        """Read tokens; the logits (V) after the last one."""
        ids_BT = torch.tensor([ids], device=self.model.device)
        output = self.model(ids_BT, past_key_values=cache, use_cache=True, **self._few)
        logits_V: Tensor = output.logits[0, -1]
        return logits_V


class Writing(Work):
    """One request on its way. Setting the dial and computing with it are one step.

    Args:
        request: what is to be written.
        desk: what it is written with.
        give: is handed each piece, and at last an error if there is one.
        seconds: the longest it may take.
    """

    def __init__(
        self,
        request: Request,
        desk: Desk,
        give: Callable[[Piece | BaseException], None],
        seconds: float,
    ) -> None:
        super().__init__(seconds)
        self.request, self.desk, self.give = request, desk, give
        self.generator = make_generator(request.sampling.seed)
        self.text = TextWriter(desk.tokenizer, request.ids, request.sampling.stop)
        self.cache: Any = None
        self.ids = list(request.ids)
        self.read = self.cached = 0

    @property
    def written(self) -> int:
        """How many tokens were written."""
        return len(self.ids) - len(self.request.ids)

    def advance(self) -> bool:
        """Read a part of the prompt, or write a token; whether there is more to do."""
        if self.cache is None:
            self._begin()
        end = min(self.read + PART_TOKENS, len(self.ids))
        self.desk.speak_as(self.request.voice)
        logits_V = self.desk.logits(tuple(self.ids[self.read : end]), self.cache)
        self.read = end
        return True if end < len(self.ids) else self.write(logits_V)

    def fail(self, error: BaseException) -> None:
        """Tell whoever reads."""
        self.give(error)

    def write(self, logits_V: Tensor) -> bool:
        """Choose a token and give what text is certain; whether there is more to do."""
        token = choose_token(logits_V, self.request.sampling, self.generator)
        self.ids.append(token.id)
        if token.id in self.desk.ends:
            return self._finish("stop")
        text, tokens = self.text.add(token)
        if self.text.stopped:
            return self._finish("stop", text, tokens)
        if self.written >= self.request.sampling.max_tokens:
            more, others = self.text.end()
            finish = "stop" if self.text.stopped else "length"
            return self._finish(finish, text + more, tokens + others)
        if text or tokens:
            self.give(Piece(text, tokens))
        return True

    def _begin(self) -> None:
        """Take what an earlier request has read already.

        Not with a seed: read in other parts, a prompt's numbers are other ones in their last
        digits, and what others have asked before would count.
        """
        if self.request.sampling.seed is None:
            self.cache, self.cached = self.desk.caches.take(self.request.voice, self.request.ids)
        self.cache = self.desk.new_cache() if self.cache is None else self.cache
        self.read = self.cached

    def _finish(self, finish: str, text: str = "", tokens: tuple = ()) -> bool:
        if finish == "stop" and not self.text.stopped:
            text, tokens = self.text.end()
        # The last token was written but never read by the model.
        self.desk.caches.put(self.request.voice, self.ids[: self.read], self.cache)
        usage = Usage(len(self.request.ids), self.cached, self.written)
        self.give(Piece(text, tokens, finish, usage))
        return False


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text, as `generate` knows them, and the tokenizer's own."""
    config = getattr(model, "generation_config", None)
    known = eos_ids(getattr(config, "eos_token_id", None))
    return frozenset(known | eos_ids(tokenizer.eos_token_id))
