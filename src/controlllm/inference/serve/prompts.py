"""From what clients send to tokens: outside the model's thread, and within bounds."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from controlllm.inference.compare import answered_chat
from controlllm.inference.generate import prompt_ids, text_ids
from controlllm.inference.serve.errors import ApiError
from controlllm.inference.serve.settings import ServeLimits
from controlllm.inference.serve.templates import TemplateProcess

__all__ = ["Prompts"]

T = TypeVar("T")


class Prompts:
    """Encodes conversations and texts in one thread of its own.

    Names of special tokens in what clients send are text; prompts of token ids may hold any token.

    Args:
        tokenizer: the model's.
        limits: the longest prompt and the most of a template.
        context: the positions that the model knows.
    """

    def __init__(self, tokenizer: Any, limits: ServeLimits, context: int | None) -> None:
        self.tokenizer, self.limits, self.context = tokenizer, limits, context
        self._template = TemplateProcess(tokenizer, limits) if tokenizer.chat_template else None
        self._thread = ThreadPoolExecutor(1, "prompts")

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat template."""
        return self._template is not None

    async def chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """The tokens of a conversation, up to where the answer begins.

        Raises:
            ApiError: there is no chat template, or too many tokens.
            DataError: the template refuses the conversation.
        """
        if (template := self._template) is None:
            raise ApiError(
                400,
                "This model has no chat template: it continues texts. Use /v1/completions, or "
                "start the server with --chat_template.",
                "messages",
                "no_chat_template",
            )
        return await self._encoded(
            lambda: prompt_ids(self.tokenizer, messages, template.render)[0].tolist(), "messages"
        )

    async def text(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """The tokens of a text, or those given, if the model knows them.

        Raises:
            ApiError: a token that does not exist, none at all, or too many.
        """
        if isinstance(prompt, str):
            text = prompt
            return await self._encoded(lambda: text_ids(self.tokenizer, text)[0].tolist(), "prompt")
        size = len(self.tokenizer)
        if any(not 0 <= token < size for token in prompt):
            raise ApiError(400, f"prompt: token ids go from 0 to {size - 1}.", "prompt")
        return self._bounded(list(prompt), "prompt")

    async def answered(self, prompt: Sequence[int], answer: str) -> tuple[list[int], int]:
        """The tokens of a conversation and an answer to it, and where the answer begins."""
        return await self._in_thread(lambda: answered_chat(self.tokenizer, prompt, answer))

    def room(self, prompt_tokens: int, asked: int | None) -> int:
        """How many tokens an answer may have.

        Raises:
            ApiError: more than the server gives, or than the context holds.
        """
        most = self.limits.max_tokens
        left = most if self.context is None else self.context - prompt_tokens
        if asked is not None and asked > most:
            raise ApiError(400, f"max_tokens: this server writes at most {most}.", "max_tokens")
        if left < (asked or 1):
            raise ApiError(
                400,
                f"The model's context holds {self.context} tokens; the prompt has {prompt_tokens} "
                f"and the answer may have {asked or 1}.",
                "max_tokens",
                "context_length_exceeded",
            )
        return min(most, left) if asked is None else asked

    async def start(self) -> None:
        """Get ready, so that the first conversation need not wait."""
        if self._template is not None:
            await self._in_thread(self._template.start)

    def close(self) -> None:
        """End the thread and the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._template is not None:
            self._template.close()

    async def _encoded(self, encode: Callable[[], list[int]], field: str) -> tuple[int, ...]:
        return self._bounded(await self._in_thread(encode), field)

    def _bounded(self, ids: list[int], field: str) -> tuple[int, ...]:
        most = self.limits.prompt_tokens
        if len(ids) > most:
            raise ApiError(
                400,
                f"The prompt has {len(ids)} tokens; this server takes at most {most}.",
                field,
                "context_length_exceeded",
            )
        if not ids:
            raise ApiError(400, "the prompt has no tokens.", field)
        return tuple(ids)

    async def _in_thread(self, do: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, do)
