"""Rows -> examples of at most `max_length` tokens, every row accounted for."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.data.config.columns import MissingColumnError
from controlllm.data.config.data_config import DataConfig
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.render import Renderer
from controlllm.data.examples.row_filters import keeps_row
from controlllm.data.examples.tokens import Prepared, Tokenized
from controlllm.data.formats import to_document
from controlllm.data.sources import Located

__all__ = ["Example", "RowEncoder", "SourceStats", "checked_row", "encode_rows", "piece_bos"]

log = logging.getLogger(__name__)

BAD_ROWS_TOLD = 5
"""Bad rows whose reasons are remembered."""

MOST_WITHOUT_TARGETS = 0.1
"""Share of rows without targets above which a warning says so."""

ROWS_AT_ONCE = 256
"""Rows tokenized in one call by a pass over a whole source."""


@dataclass(frozen=True, slots=True)
class Example:
    """A document, a piece of one, or a slot that was filled beforehand; at most `max_length`."""

    input_ids: NDArray[np.int32]
    """Token ids (T)."""
    labels: NDArray[np.int32]
    """The ids where they are targets, -100 elsewhere and at the first token (T)."""
    starts: NDArray[np.int32] | None = None
    """Where the second and further documents begin, if this is a slot of several."""
    reopened: bool = False
    """Whether its first token is a BOS that was put before the rest of a document."""

    @classmethod
    def whole(cls, tokens: Sequence[int]) -> "Example":
        """All tokens are targets, but the first: nothing is before it."""
        ids = np.array(tokens, dtype=np.int32)
        return cls(ids, ids).part(0, None, None)

    def __len__(self) -> int:
        return len(self.input_ids)

    def reopens(self, bos: int | None) -> bool:
        """Whether parts that begin later begin with BOS, as the document does."""
        return len(self.input_ids) > 0 and self.input_ids[0] == bos

    def part(self, start: int, end: int | None, bos: int | None) -> "Example":
        """Tokens [start, end) as an example; one that begins later has BOS before them.

        Neither BOS nor the part's own first token is a target: the part before predicts that one.
        `bos` is None where parts begin as they lie.
        """
        ids, labels = self.input_ids[start:end], self.labels[start:end].copy()
        labels[:1] = IGNORE_INDEX
        if not (start and self.reopens(bos)):
            return Example(ids, labels)
        ids = np.concatenate((self.input_ids[:1], ids))
        return Example(ids, np.concatenate((labels[:1], labels)), reopened=True)


@dataclass
class SourceStats:
    """What became of the rows of a source; nothing is left out uncounted."""

    rows: int = 0
    """Rows read."""
    examples: int = 0
    """Examples made."""
    tokens: int = 0
    """Tokens of all examples."""
    targets: int = 0
    """Tokens that are targets."""
    split: int = 0
    """Rows cut into several examples."""
    truncated: int = 0
    """Rows cut at `max_length`, the rest thrown away."""
    dropped: int = 0
    """Rows left out because they are longer than `max_length`."""
    without_targets: int = 0
    """Rows left out because nothing in them is a target."""
    filtered: int = 0
    """Rows left out on purpose: the other side of a split, a filter, a sample, a format."""
    duplicates: int = 0
    """Rows left out because an earlier one became the same examples (`deduplicate`)."""
    bad_rows: int = 0
    """Rows left out because they could not be read (`on_bad_row: skip`)."""
    special_as_text: int = 0
    """Rows that name special tokens, taken as text (unless `special_tokens_in_text`)."""
    repeated_bos: int = 0
    """BOS tokens before the further pieces of split rows (`piece_bos`), among `tokens`."""

    def add(self, other: "SourceStats") -> None:
        """Add the counts of another part of the source."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def describe(self) -> str:
        """One line for people: the sizes, then every count that is not 0."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ", ".join(
            f"{count:,} {name.replace('_', ' ').replace('bos', 'BOS')}"
            for place, (name, count) in enumerate(named)
            if count or place < 4
        )

    def without_targets_text(self, config: DataConfig) -> str:
        """How many rows have nothing to learn from, and why."""
        advice = ", as they were cut: raise data.max_length" if self.truncated else ""
        few = f"nothing in {self.without_targets:,} of {self.rows:,} rows"
        return f"{few} is of train_on={config.train_on}{advice}"

    def warn_of_few_targets(self, name: str | None, config: DataConfig) -> None:
        """Warn where more than a tenth of the rows read has nothing to learn from."""
        if self.without_targets > self.rows * MOST_WITHOUT_TARGETS:
            why = self.without_targets_text(config)
            log.warning("Source %s: %s. Such rows are left out.", name, why)


class RowEncoder:
    """Turns rows of one source into examples, and counts what became of them.

    Only in `training` does `mixed_training` apply.
    """

    def __init__(
        self,
        source: SourceConfig,
        tokenizer: PreTrainedTokenizerBase,
        config: DataConfig,
        training: bool = False,
    ) -> None:
        self.source, self.config, self.stats = source, config, SourceStats()
        self.bad: list[str] = []
        self._told: set[Any] = set()
        self.renderer = Renderer(tokenizer, config, training and config.mixed_training)
        self.bos = piece_bos(tokenizer, config)

    def fresh(self) -> "RowEncoder":
        """The same encoder with all counts at 0."""
        other = copy(self)
        other.stats, other.bad = SourceStats(), []
        return other

    def why_empty(self) -> str:
        """What became of the rows of a source that holds no example, with the first reasons."""
        parts = [f"source {self.source.name!r} holds no example: {self.stats.describe()}"]
        parts += ["; ".join(self.bad)] if self.bad else []
        if self.stats.without_targets:
            parts.append(self.stats.without_targets_text(self.config))
        return ". ".join(parts) + "."

    def encode(self, rows: Sequence[Located], chosen: bool = False) -> list[list[Example]]:
        """The examples of each row, in order; none for a row that is left out.

        Many at once are several times faster than one by one. With `chosen`, `choose` has counted
        and chosen the rows already.

        Raises:
            DataError: a row cannot be used (named by source, file and row).
        """
        prepared = [self._prepare(place, row, chosen) for place, row in rows]
        rendered = iter(self.renderer.tokenize([item for item in prepared if item is not None]))
        return [self._fit(next(rendered)) if item is not None else [] for item in prepared]

    def choose(self, rows: Iterable[Located]) -> Iterator[Located]:
        """The rows that take part, for a hook that comes before `encode`.

        Raises:
            DataError: as `encode`.
        """
        for place, row in rows:
            self.stats.rows += 1
            taken = False
            with self.accounting(place):
                taken = keeps_row(checked_row(row), self.source)
                self.stats.filtered += not taken
            if taken:
                yield place, row

    @contextmanager
    def accounting(self, place: Any) -> Iterator[None]:
        """What a bad row inside the block means: an error that names it, or one more to the count.

        Raises:
            DataError: a `DataError` inside the block, with source and place.
        """
        try:
            yield
        except DataError as error:
            if self.source.on_bad_row == "error":
                text = f"source {self.source.name!r}: {place}: {error}."
                # A column that the first row lacks is misspelt: to skip would leave no row at all.
                first = self.stats.rows - self.stats.filtered <= 1
                if not (first and isinstance(error, MissingColumnError)):
                    text += " (`on_bad_row: skip` leaves such rows out.)"
                raise DataError(text) from error
            self.note_bad(place, error)
            # Of a process: rows come again in every epoch.
            if place not in self._told and len(self._told) < BAD_ROWS_TOLD:
                self._told.add(place)
                log.warning("Source %s leaves out a row: %s: %s", self.source.name, place, error)

    def note_bad(self, place: Any, error: DataError) -> None:
        """Count a bad row, and remember the first ones."""
        self.stats.bad_rows += 1
        if len(self.bad) < BAD_ROWS_TOLD:
            self.bad.append(f"{place}: {error}")

    def _prepare(self, place: Any, row: Any, chosen: bool) -> Prepared | None:
        self.stats.rows += not chosen
        with self.accounting(place):
            row, source, document = checked_row(row), self.source, None
            if chosen or keeps_row(row, source):
                document = to_document(row, source.format, source.columns, source.numbers_as_text)
            if document is not None:
                prepared = self.renderer.prepare(document)
                self.stats.special_as_text += prepared.named
                return prepared
            self.stats.filtered += 1
        return None

    def _fit(self, tokens: Tokenized) -> list[Example]:
        """Cut what is longer than `max_length` as told; leave out what has no target."""
        stats, config = self.stats, self.config
        length, limit = len(tokens.input_ids), config.max_length
        whole = Example(tokens.input_ids, tokens.labels)
        pieces = [(whole, tokens.targets)]
        if length > limit:
            policy = config.long_text if tokens.is_text else config.long_chat
            if policy == "drop":
                stats.dropped += 1
                return []
            stats.truncated += policy == "truncate"
            stats.split += policy == "split"
            bos = int(policy == "split" and whole.reopens(self.bos))
            # Pieces share one token: the last of a piece opens the next, so that every token is
            # predicted once.
            further = range(limit - 1, length - 1, limit - 1 - bos) if policy == "split" else ()
            parts = [whole.part(0, limit, None)]
            parts += [whole.part(start, start + limit - bos, self.bos) for start in further]
            pieces = [(part, int(np.count_nonzero(part.labels != IGNORE_INDEX))) for part in parts]
        kept = []
        for piece, targets in pieces:
            if targets:
                stats.targets += targets
                stats.tokens += len(piece)
                stats.repeated_bos += piece.reopened
                kept.append(piece)
        stats.without_targets += not kept
        stats.examples += len(kept)
        return kept


def checked_row(row: Any) -> dict[str, Any]:
    """The row itself.

    Raises:
        DataError: the reason why there is none.
    """
    if isinstance(row, DataError):
        raise row
    if not isinstance(row, dict):
        raise DataError(f"a row must map columns to values; this is a {type(row).__name__}")
    return row


def piece_bos(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> int | None:
    """The token that opens every piece of a document that begins with it, if that is asked for."""
    return tokenizer.bos_token_id if config.piece_bos else None


def encode_rows(
    encoder: RowEncoder, rows: Iterable[Located], chosen: bool = False
) -> Iterator[tuple[Located, list[Example]]]:
    """Every row with its examples, some rows at a time."""
    upcoming = iter(rows)
    while some := list(islice(upcoming, ROWS_AT_ONCE)):
        yield from zip(some, encoder.encode(some, chosen), strict=True)
