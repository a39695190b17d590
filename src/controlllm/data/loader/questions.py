"""A held-out set as questions: what a model is to answer, and what the answer should have been.

```
system, user, assistant, user, assistant
'--------- prompt ------------' answer     the last one; rendered by the template of the run
```
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError, DataError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.common.storage.remote import is_remote
from controlllm.data.cache.prepare import hooked_rows
from controlllm.data.config.data_config import DataConfig
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import Example, RowEncoder, checked_row
from controlllm.data.examples.render import Renderer
from controlllm.data.examples.row_filters import keeps_row
from controlllm.data.formats import Message, to_document
from controlllm.data.loader.open_source import check_source, open_source
from controlllm.data.loader.plugins import load_plugins
from controlllm.data.sources import Located
from controlllm.data.sources.opening import kind_of_source

__all__ = ["Question", "QuestionSet", "check_questions", "read_questions"]


@dataclass(frozen=True)
class Question:
    """One row: a prompt and its answer.

    Attributes:
        messages: all turns before the answer.
        answer: what the assistant said.
        prompt: the turns as the template renders them, up to where an answer begins.
        prompt_ids: its token ids.
    """

    messages: tuple[Message, ...]
    answer: str
    prompt: str
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a held-out set, in the order of its rows.

    Attributes:
        name: of the set.
        questions: at least one.
        too_long: rows left out because their prompt is too long.
        renderer: renders them.
        longest: most tokens of prompt and answer; None = any.
    """

    name: str
    questions: tuple[Question, ...]
    too_long: int
    renderer: Renderer = field(repr=False, compare=False)
    longest: int | None = None

    def part(self, rows: range) -> "QuestionSet":
        """Some of its rows."""
        return replace(self, questions=tuple(self.questions[row] for row in rows))

    def examples(self, answers: Sequence[str] | None = None) -> list[Example]:
        """Prompt and answer of each question as tokens; the targets are what answers it.

        Args:
            answers: instead of the right ones, one for each question.
        """
        answers = [one.answer for one in self.questions] if answers is None else answers
        documents = [
            [*question.messages, {"role": "assistant", "content": answer}]
            for question, answer in zip(self.questions, answers, strict=True)
        ]
        tokens = self.renderer.tokenize([self.renderer.prepare(one) for one in documents])
        return [Example(one.input_ids, one.labels).part(0, self.longest, None) for one in tokens]

    def end_ids(self) -> set[int]:
        """Tokens that end an answer: EOS, and what the template ends an answer with."""
        tokenizer = self.renderer.tokenizer
        added = set(tokenizer.get_added_vocab().values())
        first = replace(self, questions=self.questions[:1], longest=None).examples()[0]
        targets = first.input_ids[first.labels != IGNORE_INDEX].tolist()
        return {int(tokenizer.eos_token_id), *(added & set(targets[-1:]))}


def read_questions(
    source: SourceConfig,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    limit: int | None = None,
    longest: int | None = None,
    room: int = 0,
) -> QuestionSet:
    """The first questions of a held-out set; no more rows are read than needed.

    Args:
        source: the set.
        tokenizer: a fast tokenizer.
        config: the template, and how rows are read.
        limit: the most questions; None = all.
        longest: most tokens of prompt and answer; None = any.
        room: tokens of them that are kept free for the answer: longer prompts are left out.

    Raises:
        ConfigError: its rows are plain text, or no prompt is short enough.
        DataError: the source or a row cannot be used.
    """
    load_plugins(config)
    config = replace(config, train_on=["assistant"])
    encoder, chunks = RowEncoder(source, tokenizer, config), open_source(source, config)
    rows: Iterable[Located] = chunks.rows()
    if source.postprocess:
        rows = hooked_rows(encoder, rows, None)
    questions: list[Question] = []
    too_long = 0
    for place, row in rows:
        with encoder.accounting(place):
            question = _question(row, source, encoder.renderer)
            if question is None:
                continue
            if longest is not None and len(question.prompt_ids) + room > longest:
                too_long += 1
                continue
            questions.append(question)
        if len(questions) == limit:
            break
    if not questions:
        if too_long:
            raise ConfigError(
                f"the prompts of {source.name!r} have more than {longest} - {room} tokens, so "
                "there is no room for an answer in the model's context; lower "
                "evaluation.generation.max_new_tokens, or name a set of shorter rows."
            )
        raise DataError(encoder.why_empty())
    return QuestionSet(str(source.name), tuple(questions), too_long, encoder.renderer, longest)


def check_questions(source: SourceConfig, config: DataConfig) -> None:
    """Check that a set's first row has a prompt and an answer, before a model is loaded.

    Only sources in files of this machine are opened; others are told of when they are read.

    Raises:
        ConfigError: its rows are plain text, or are chosen by a pass over the whole source.
        DataError: the first row cannot be used.
    """
    load_plugins(config)
    check_source(source)
    if source.deduplicate or source.sample_rows:
        which = "deduplicate" if source.deduplicate else "sample_rows"
        raise ConfigError(
            f"evaluation.generation.sets names {source.name!r}, whose rows are chosen by "
            f"`{which}` once all are tokens; name a set without it (`max_rows` and `sample` "
            "choose rows, too)."
        )
    if kind_of_source(source) != "files" or is_remote(source.path) or source.postprocess:
        return
    for place, row in open_source(source, config).rows():
        try:
            if isinstance(row, dict) and _conversation(row, source) is not None:
                return
        except DataError as error:
            if source.on_bad_row == "error":
                raise DataError(f"source {source.name!r}: {place}: {error}.") from error


def _question(row: Any, source: SourceConfig, renderer: Renderer) -> Question | None:
    """A row as a question; None where it does not take part."""
    found = _conversation(checked_row(row), source)
    if found is None:
        return None
    messages, answer = found
    prepared = renderer.prepare_prompt(messages)
    ids = renderer.tokenize([prepared])[0].input_ids
    return Question(messages, answer, renderer.prompt(messages), tuple(ids.tolist()))


def _conversation(
    row: dict[str, Any], source: SourceConfig
) -> tuple[tuple[Message, ...], str] | None:
    """The turns before the last answer, and that answer; None where the row is left out."""
    if not (source.postprocess or keeps_row(row, source)):  # What a hook gave was chosen before.
        return None
    document = to_document(row, source.format, source.columns, source.numbers_as_text)
    if document is None:
        return None
    if isinstance(document, str):
        raise ConfigError(
            f"evaluation.generation.sets names {source.name!r}, whose rows are plain text without "
            "prompt and answer; name a set of conversations, or of prompts and completions "
            "(docs/data-formats.md)."
        )
    places = [i for i, message in enumerate(document) if message["role"] == "assistant"]
    if not places or not places[-1]:
        what = "nothing stands before the answer" if places else "nobody answers"
        raise DataError(f"{what}, so the conversation is no prompt with an answer")
    answer = document[places[-1]].get("content")
    if not isinstance(answer, str) or not answer.strip():
        raise DataError("the last answer has no text")
    return tuple(document[: places[-1]]), answer
