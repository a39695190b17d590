"""What a source chooses once all its rows are known: no duplicates, so many rows, easy ones first.

For each row 48 bytes are kept, not its tokens, so a pass over 20 million rows fits into memory.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from controlllm.common.errors import DataError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.data.config.columns import value_of
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import Example, SourceStats

__all__ = ["Selection"]

_NOTES, _FILE = ("_hashes", "_difficulty", "_counts"), "notes.npz"


class Selection:
    """Notes of every row that has examples, and the choice among them."""

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        self._hashes, self._difficulty = array("Q"), array("d")
        # Examples, tokens, targets and repeated BOS of each row.
        self._counts = array("q")

    def add(self, row: Mapping[str, Any], examples: Sequence[Example]) -> None:
        """Note a row with the examples that it became, at least one.

        Raises:
            DataError: its difficulty is not a number.
        """
        length = sum(map(len, examples))
        self._difficulty.append(self._difficulty_of(row, length))
        digest, targets = blake2b(digest_size=8), 0
        for example in examples:
            digest.update(example.input_ids.tobytes() + example.labels.tobytes())
            targets += int((example.labels != IGNORE_INDEX).sum())
        repeated_bos = sum(example.reopened for example in examples)
        self._counts.extend((len(examples), length, targets, repeated_bos))
        self._hashes.append(int.from_bytes(digest.digest(), "little"))

    def save(self, folder: Path) -> None:
        """Write the notes into a folder, for another process to add to its own."""
        np.savez(folder / _FILE, *(np.array(getattr(self, name)) for name in _NOTES))

    def load(self, folder: Path) -> int:
        """Add the notes that another process has saved; how many rows they are of.

        Raises:
            DataError: they are damaged.
        """
        try:
            with np.load(folder / _FILE, allow_pickle=False) as read:
                for name, values in zip(_NOTES, read.values(), strict=True):
                    getattr(self, name).frombytes(values.tobytes())
                return len(read["arr_0"])
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise DataError(f"{folder} is damaged ({error}); run again.") from error

    def choose(self, stats: SourceStats) -> tuple[NDArray[np.int64] | None, list[int] | None]:
        """The examples that take part in their order (None = all), and the sizes of phases.

        Adds what is left out to the counts of `stats`, and takes it off its sizes.
        """
        rows = np.arange(len(self._hashes))
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        if self.source.deduplicate:
            rows = np.sort(np.unique(hashes, return_index=True)[1])
            stats.duplicates += len(hashes) - len(rows)
        if self.source.sample_rows is not None and len(rows) > self.source.sample_rows:
            # Equal rows have equal hashes: their places decide, so that the number is exact.
            order = np.lexsort((rows, hashes[rows]))
            stats.filtered += len(rows) - self.source.sample_rows
            rows = np.sort(rows[order[: self.source.sample_rows]])
        sizes = None
        if self.source.difficulty:
            rows, sizes = self._in_phases(rows)
        elif len(rows) == len(hashes):
            return None, None
        columns = self._columns()
        pieces = columns[0]
        if sizes is not None:
            sizes = [int(pieces[part].sum()) for part in np.split(rows, np.cumsum(sizes)[:-1])]
        sums = columns[:, rows].sum(axis=1).tolist()
        stats.examples, stats.tokens, stats.targets, stats.repeated_bos = sums
        # The numbers of their examples: row r has `pieces[r]` of them, one after the other.
        starts, counts = np.cumsum(pieces) - pieces, pieces[rows]
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(starts[rows], counts) + inside, sizes

    def _columns(self) -> NDArray[np.int64]:
        return np.frombuffer(self._counts, dtype=np.int64).reshape(-1, 4).T

    def _difficulty_of(self, row: Mapping[str, Any], length: int) -> float:
        column = self.source.difficulty
        if column is None or column == "length":
            return float(length)
        value, number = value_of(row, column, "difficulty"), math.nan
        if isinstance(value, int | float | Decimal | str) and not isinstance(value, bool):
            with suppress(ValueError, OverflowError):
                number = float(value)  # CSV files hold numbers as text.
        if math.isnan(number):
            raise DataError(f"column {column!r}, named in `difficulty`, is {value!r}, not a number")
        return number

    def _in_phases(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[int]]:
        """Rows from easy to hard, cut where each phase has its part of all tokens."""
        difficulty = np.frombuffer(self._difficulty, dtype=np.float64)[rows]
        rows = rows[np.argsort(difficulty, kind="stable")]
        if not len(rows):
            return rows, []
        mass = np.cumsum(self._columns()[1][rows])
        wanted = mass[-1] * np.arange(1, self.source.phases) / self.source.phases
        bounds = [0, *np.minimum(np.searchsorted(mass, wanted) + 1, len(rows)), len(rows)]
        return rows, [int(size) for size in np.diff(bounds) if size]
