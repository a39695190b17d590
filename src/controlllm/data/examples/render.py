"""Documents -> texts by the chat template, and which of their characters are targets."""

import re
from collections.abc import Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from controlllm.common.errors import DataError
from controlllm.data.config.data_config import DataConfig
from controlllm.data.examples.skeleton import Skeleton, make_skeleton
from controlllm.data.examples.spans import Span, role_spans
from controlllm.data.examples.templates import resolve_chat_template
from controlllm.data.examples.tokens import Prepared, TextTokenizer
from controlllm.data.formats import Document, Message

__all__ = ["Renderer"]

MOST_SKELETONS = 256
"""Sequences of roles that are remembered."""

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Renderer:
    """Turns documents into tokens by the tokenizer and one chat template.

    A conversation has exactly the ids of `tokenizer.apply_chat_template(messages)`; plain text has
    the ids of `tokenizer(text)` and ends with EOS. But where contents or a text name special
    tokens, those names are text, unless `special_tokens_in_text` says otherwise.

    Raises:
        DataError: the tokenizer is slow or has no EOS token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: DataConfig, every_token: bool = False
    ) -> None:
        if not tokenizer.is_fast:
            raise DataError(
                f"{type(tokenizer).__name__} is a slow tokenizer, which does not tell the "
                "characters of a token; load the fast one (AutoTokenizer does, if there is one)."
            )
        if tokenizer.eos_token_id is None:
            text = "the tokenizer has no eos_token, so texts cannot end; set tokenizer.eos_token."
            raise DataError(text)
        self.tokenizer = tokenizer
        tokens = TextTokenizer(tokenizer)
        self.tokenize = tokens.tokenize
        self.every_token = every_token
        self.chat_template = resolve_chat_template(config.chat_template, tokenizer)
        self._skeletons: dict[tuple[str, ...], Skeleton | None] = {}
        self.train_on = frozenset(config.train_on)
        self._names = None if config.special_tokens_in_text else tokens.names
        self._special_tokens = frozenset(tokenizer.get_added_vocab())
        marked = GENERATION_MARK.search(self.chat_template) is not None
        self._has_marks = marked and not every_token and self.train_on == {"assistant"}

    def prepare(self, document: Document) -> Prepared:
        """Render one document to text.

        Raises:
            DataError: the template refuses the conversation.
        """
        named = self._names is not None and self._names.stand_in(document)
        if isinstance(document, str):
            return Prepared(document, None, named)
        if self._names is None or not named:
            return self._fill_skeleton(document) or self._prepare_chat(document)
        hidden = self._prepare_chat(self._names.hide(document))
        return Prepared(*self._names.reveal(hidden.text, hidden.spans or ()), named=True)

    def _fill_skeleton(self, document: list[Message]) -> Prepared | None:
        """The quick way, for conversations of plain texts by a template that treats all alike."""
        contents = [message.get("content") for message in document]
        are_plain = all(len(m) == 2 and type(m.get("content")) is str for m in document)
        if not are_plain:
            return None
        roles = tuple(message["role"] for message in document)
        if roles not in self._skeletons:
            if len(self._skeletons) >= MOST_SKELETONS:
                return None
            self._skeletons[roles] = make_skeleton(roles, self._render_probes, self._prepare_chat)
        skeleton = self._skeletons[roles]
        filled = skeleton.fill(cast(list[str], contents)) if skeleton is not None else None
        return Prepared(*filled) if filled is not None else None

    def _render_probes(self, messages: list[Message]) -> str:
        """As `_render`, which would turn probes into plain texts."""
        compiled = cast(Any, chat_template_utils)._compile_jinja_template(self.chat_template)
        settings = {"tools": None, "documents": None, "add_generation_prompt": False}
        text: str = compiled.render(
            messages=messages, **settings, **self.tokenizer.special_tokens_map
        )
        return text

    def _prepare_chat(self, document: list[Message]) -> Prepared:
        if self._has_marks:
            return Prepared(*self._render(document, False))
        text = self._render_text(document, False)
        if self.every_token:
            return Prepared(text, [(0, len(text))])
        spans = role_spans(text, document, self.train_on, self._render_text, self._special_tokens)
        return Prepared(text, spans)

    def prompt(self, messages: Sequence[Message]) -> str:
        """The conversation as a text, up to where an answer begins.

        Raises:
            DataError: the template refuses the conversation.
        """
        return self._render_text(messages, True)

    def prepare_prompt(self, messages: Sequence[Message]) -> Prepared:
        """The same ready to be tokenized; nothing in it is a target.

        Raises:
            DataError: the template refuses the conversation.
        """
        if self._names is None or not self._names.stand_in(list(messages)):
            return Prepared(self.prompt(messages), [])
        hidden = self.prompt(self._names.hide(messages))
        return Prepared(self._names.reveal(hidden)[0], [], named=True)

    def _render_text(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return self._render(messages, add_generation_prompt)[0]

    def _render(self, messages: Sequence[Message], prompt: bool) -> tuple[str, list[Span]]:
        """The text and the spans inside `{% generation %}` marks (none unless they decide)."""
        try:
            texts, spans = cast(Any, render_jinja_template)(
                conversations=[list(messages)],
                chat_template=self.chat_template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=self._has_marks,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:  # A template is somebody's program, and may raise anything.
            raise DataError(f"the chat template refuses the conversation: {error}") from error
        return texts[0], [(start, end) for start, end in (spans[0] if spans else [])]
