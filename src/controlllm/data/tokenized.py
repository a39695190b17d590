"""Step 4: a whole source -> examples of at most `max_length` tokens, every row accounted for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.data.config import DataConfig, SourceConfig
from controlllm.data.formats import to_document
from controlllm.data.render import Prepared, Rendered, Renderer
from controlllm.data.sources import read_rows

__all__ = ["Example", "SourceStats", "TokenizedSource", "tokenize_source"]

ROWS_AT_ONCE = 1000
"""Rows tokenized in one call: enough for the tokenizer's speed, little enough for memory."""


@dataclass(frozen=True)
class Example:
    """A document, or a piece of one, that fits into `max_length`."""

    input_ids: NDArray[np.int32]
    """Token ids (T)."""

    labels: NDArray[np.int32]
    """The ids where they are targets, -100 elsewhere and at the first token (T)."""

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)


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
    """Texts cut into several examples."""
    truncated: int = 0
    """Rows cut at `max_length`, the rest thrown away."""
    dropped: int = 0
    """Rows left out because they are longer than `max_length`."""
    without_targets: int = 0
    """Rows left out because nothing in them is a target."""
    bad_rows: int = 0
    """Rows left out because they could not be read (`on_bad_row: skip`)."""

    def describe(self) -> str:
        """One line for people: the sizes, then every count that is not 0."""
        parts = [f"{self.rows:,} rows, {self.examples:,} examples, {self.tokens:,} tokens"]
        parts.append(f"{self.targets:,} targets")
        for name in ("split", "truncated", "dropped", "without_targets", "bad_rows"):
            if count := getattr(self, name):
                parts.append(f"{count:,} {name.replace('_', ' ')}")
        return ", ".join(parts)


class TokenizedSource:
    """A source in tokens: `len(source)`, `source[i] -> Example`; 5 bytes a token.

    Args:
        name: as metrics call it.
        pieces: rendered documents, each at most `max_length` long.
        stats: counts so far; sizes are added here.

    Raises:
        DataError: there is no piece.
    """

    def __init__(
        self, name: str, pieces: Iterable[Rendered], stats: SourceStats | None = None
    ) -> None:
        self.name = name
        self.stats = stats or SourceStats()
        kept = [(piece.input_ids, piece.targets) for piece in pieces]
        if not kept:
            raise DataError(f"source {name!r} is empty: {self.stats.describe()}.")
        self.lengths = np.array([len(ids) for ids, _ in kept], dtype=np.int64)
        self._ends = np.cumsum(self.lengths)
        self._ids = np.concatenate([ids for ids, _ in kept])
        self._targets = np.concatenate([targets for _, targets in kept])
        self.stats.examples = len(kept)
        self.stats.tokens = len(self._ids)
        self.stats.targets = int(self._targets.sum())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every token, target and cut: equal fingerprints give equal examples."""
        digest = blake2b(digest_size=16)
        for array in (self._ids, self._targets, self.lengths):
            digest.update(array.tobytes())
        return digest.hexdigest()

    @classmethod
    def from_tokens(cls, name: str, rows: Iterable[Sequence[int]]) -> "TokenizedSource":
        """A source from token ids, all of them targets (what a model wrote for rehearsal, say)."""
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        stats = SourceStats(rows=len(arrays))
        return cls(
            name, (Rendered(ids, np.arange(len(ids)) > 0, is_text=True) for ids in arrays), stats
        )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        """The example at `index` (0 <= index < len)."""
        if not 0 <= index < len(self):
            raise IndexError(f"source {self.name!r} has {len(self)} examples; there is no {index}.")
        part = slice(self._ends[index] - self.lengths[index], self._ends[index])
        ids = self._ids[part]
        return Example(ids, np.where(self._targets[part], ids, IGNORE_INDEX).astype(np.int32))


def tokenize_source(
    source: SourceConfig, tokenizer: PreTrainedTokenizerBase, config: DataConfig
) -> TokenizedSource:
    """Read, render and tokenize a source.

    Args:
        source: where the rows lie and how to read them.
        tokenizer: a fast tokenizer.
        config: template, targets, `max_length` and what to do with longer rows.

    Raises:
        DataError: the source cannot be read, a row cannot be used (named by file and line), or
            nothing is left.
    """
    renderer, stats = Renderer(tokenizer, config), SourceStats()
    prepared = _prepare_rows(source, renderer, stats)
    pieces = []
    while chunk := list(islice(prepared, ROWS_AT_ONCE)):
        for rendered in renderer.tokenize(chunk):
            pieces += _fit(rendered, config, stats)
    return TokenizedSource(str(source.name), pieces, stats)


def _prepare_rows(
    source: SourceConfig, renderer: Renderer, stats: SourceStats
) -> Iterator[Prepared]:
    for place, row in read_rows(source):
        stats.rows += 1
        try:
            if isinstance(row, DataError):
                raise row
            yield renderer.prepare(to_document(row, source.format, source.columns))
        except DataError as error:
            if source.on_bad_row == "error":
                raise DataError(
                    f"{place}: {error}. (`on_bad_row: skip` leaves such rows out.)"
                ) from error
            stats.bad_rows += 1


def _fit(rendered: Rendered, config: DataConfig, stats: SourceStats) -> list[Rendered]:
    """Cut what is longer than `max_length` as told; leave out what has no target."""
    length, limit = len(rendered.input_ids), config.max_length
    pieces = [rendered]
    if length > limit:
        policy = config.long_text if rendered.is_text else config.long_chat
        if policy == "drop":
            stats.dropped += 1
            return []
        stats.truncated += policy == "truncate"
        stats.split += policy == "split"
        # Pieces share one token: the last of a piece opens the next, so that every token is
        # predicted once.
        starts = range(0, length - 1, limit - 1) if policy == "split" else range(1)
        pieces = [_piece(rendered, start, start + limit) for start in starts]
    kept = [piece for piece in pieces if piece.targets.any()]
    stats.without_targets += not kept
    return kept


def _piece(rendered: Rendered, start: int, end: int) -> Rendered:
    targets = rendered.targets[start:end].copy()
    targets[:1] = False
    return Rendered(rendered.input_ids[start:end], targets, rendered.is_text)
