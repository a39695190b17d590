"""Rows that are in two sources: trained on and measured, or trained on under two names.

Texts and conversations are compared, whatever their columns, files and formats, as hashes: 20,000
rows from the start of each source (2,000 elsewhere than on this machine) take about a second.
What is compared are whole rows, not parts of long texts.
"""

import warnings
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

from controlllm.common.errors import DataError
from controlllm.common.storage.remote import is_remote
from controlllm.data.config.data_config import DataConfig
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.row_filters import content_hash, keeps_row
from controlllm.data.formats import to_document
from controlllm.data.loader.open_source import open_source
from controlllm.data.sources.limits import weight

__all__ = ["Overlap", "measure_overlaps", "warn_of_overlaps"]

ROWS, ROWS_ELSEWHERE = 20_000, 2_000
"""The most rows of a source that are looked at, on this machine and elsewhere."""

BYTES = 32 * 2**20
"""The most bytes of a source that are looked at."""

_TRAINED = ("train", "replay")


@dataclass(frozen=True)
class Overlap:
    """Rows of one source that are in another one, too."""

    source: str
    """Whose rows they are, as `data.learn 'name'`: the held-out one, where one is."""
    other: str
    """Where they are as well."""
    common: int
    """How many rows of `source` are in `other`."""
    rows: int
    """Rows of `source` that were looked at."""
    complete: bool
    """Whether both were looked at as a whole."""
    meaning: str
    """What that means for the run."""

    def describe(self) -> str:
        """One sentence: how many rows, where, and what it means."""
        share = f"{self.common:,} of {self.rows:,} rows"
        if self.common == self.rows:
            share = f"all {self.rows:,} rows" if self.rows > 1 else "the only row"
        looked = "" if self.complete else " (only the first rows of both were compared)"
        verb = "is" if self.rows == 1 else "are"
        where = f"of {self.source} {verb} in {self.other}, too{looked}"
        return f"{share} {where}: {self.meaning}."


@dataclass(frozen=True)
class _Rows:
    group: str
    label: str
    hashes: list[int]
    complete: bool


def warn_of_overlaps(config: DataConfig) -> list[Overlap]:
    """Warn of each two sources that share rows, once for each two; also returns them."""
    overlaps = measure_overlaps(config)
    for overlap in overlaps:
        warnings.warn(overlap.describe(), stacklevel=2)
    return overlaps


def measure_overlaps(config: DataConfig) -> list[Overlap]:
    """Each two sources of a config that share rows; plugins must be loaded.

    Sources that a `postprocess` hook rewrites, and those that cannot be opened, are left out.
    """
    groups = [(group, getattr(config, group)) for group in ("learn", "retain", *_TRAINED)]
    sources = [(g, source) for g, those in groups for source in those if not source.postprocess]
    looked = []
    for group, source in sources if len(sources) > 1 else ():
        # What cannot be opened is an error where it is read for training or evaluation.
        with suppress(DataError):
            looked.append(_look(group, source, config))
    return [found for a, b in combinations(looked, 2) if (found := _common(a, b)) is not None]


def _common(first: _Rows, second: _Rows) -> Overlap | None:
    known = set(second.hashes)
    common = sum(value in known for value in first.hashes)
    if not common or (first.group == second.group and first.group not in _TRAINED):
        return None  # Two sets of one kind are two numbers.
    meaning = "they are drawn by both, so more often than their weights say"
    if first.group not in _TRAINED:
        meaning = "its loss is not held out; hold rows out with `part`, or use other rows"
    if second.group not in _TRAINED:
        meaning = "what is learned and what is forgotten is measured on the same rows"
    complete = first.complete and second.complete
    return Overlap(first.label, second.label, common, len(first.hashes), complete, meaning)


def _look(group: str, source: SourceConfig, config: DataConfig) -> _Rows:
    """Hashes of what the first rows of a source say, of those that take part."""
    most = ROWS_ELSEWHERE if source.streaming or is_remote(source.path) else ROWS
    hashes: list[int] = []
    left, complete = BYTES, True
    for number, (_, row) in enumerate(open_source(source, config).rows()):
        if number == most or left < 0:
            complete = False
            break
        left -= weight(row)
        # So are bad rows, which training and evaluation count.
        with suppress(DataError):
            if isinstance(row, dict) and keeps_row(row, source):
                document = to_document(row, source.format, source.columns, source.numbers_as_text)
                hashes += [] if document is None else [content_hash(document)]
    return _Rows(group, f"data.{group} {source.name!r}", hashes, complete)
