"""One source, looked at before training: how its rows lie, and what becomes of a sample of them.

A source of any size takes seconds: some thousand rows are read, out of chunks chosen by chance. A
bad row never stops the survey.
"""

import math
import random
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.common.storage.remote import shown
from controlllm.common.text.progress import tick
from controlllm.data.cache.prepare import hooked_rows, prepared_store, store_folder
from controlllm.data.cache.store import TokenStore
from controlllm.data.cache.whole_source import Selection
from controlllm.data.config.data_config import DataConfig
from controlllm.data.config.hooks import POSTPROCESS
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import Example, RowEncoder, piece_bos
from controlllm.data.inspect.report import Lengths, Sample, SourceReport, mask_spans
from controlllm.data.loader.open_source import check_source
from controlllm.data.sources import Chunks, Located, open_chunks

__all__ = ["Survey", "SurveyOptions", "count_rows", "survey_source"]

ROWS_AT_ONCE = 64
CHUNKS_READ, CHUNKS_COUNTED, BYTES_COUNTED = 64, 64, 64 * 2**20
TOKENS_READ = 4 * 2**20
"""A sample ends after so many tokens, however few rows they are."""
EXAMPLES_KEPT = 2048


@dataclass(frozen=True)
class SurveyOptions:
    """How closely to look."""

    rows: int = 4096
    """Rows to read; 0 = all."""
    samples: int = 2
    """Examples to show as text."""


@dataclass
class Survey:
    """A source's report, and some of its examples for trying the batcher on."""

    report: SourceReport
    examples: list[Example] = field(default_factory=list)
    bos: int | None = None
    """What opens the pieces of documents that begin with it, see `piece_bos`."""


def survey_source(
    source: SourceConfig,
    group: str,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    options: SurveyOptions,
) -> Survey:
    """Look at one source; what makes it unusable is told in the report, not raised.

    Raises:
        ConfigError: the config names a format, column, filter or hook that is not known.
    """
    check_source(source)
    place = shown(source.path)
    survey = Survey(SourceReport(group, str(source.name), place), bos=piece_bos(tokenizer, config))
    report = survey.report
    encoder = _NotingEncoder(source, tokenizer, config, training=group in ("train", "replay"))
    try:
        chunks = open_chunks(source, config.timeout)
        files = getattr(chunks, "files", None)
        report.files = len(files) if files is not None else None
        report.chunks, report.by_row = len(chunks), chunks.by_row
        report.bytes, report.rows = chunks.num_bytes, chunks.num_rows
        store = prepared_store(encoder, chunks)
        if store is not None:
            report.prepared = str(store_folder(encoder, chunks))
            kept = _from_store(report, store)
        else:
            kept = _Reading(report, encoder, chunks, options).run()
    except DataError as error:
        report.error = str(error)
        return survey
    survey.examples = [example for _, example in kept]
    step = max(1, len(kept) // max(1, options.samples))
    for place, example in kept[::step][: options.samples]:
        targets = int((example.labels != IGNORE_INDEX).sum())
        spans = mask_spans(example, tokenizer)
        report.samples.append(Sample(place, len(example), targets, spans))
    return survey


def count_rows(chunks: Chunks) -> int | None:
    """About how many rows there are, from a few chunks; None where even those are large."""
    if chunks.num_rows is not None or chunks.num_bytes is None:
        return chunks.num_rows
    most = BYTES_COUNTED * len(chunks) // max(1, chunks.num_bytes)
    chosen = list(islice(_spread(len(chunks)), min(most, CHUNKS_COUNTED)))
    if not chosen:
        return None
    return round(sum(map(chunks.count, chosen)) * len(chunks) / len(chosen))


class _NotingEncoder(RowEncoder):
    """Counts bad rows instead of stopping at one, and remembers the first."""

    @contextmanager
    def accounting(self, place: Any) -> Iterator[None]:
        """A bad row inside the block is one more to the count."""
        try:
            yield
        except DataError as error:
            self.note_bad(place, error)


class _Reading:
    """Reads rows of a source and notes what becomes of them."""

    def __init__(
        self, report: SourceReport, encoder: _NotingEncoder, chunks: Chunks, options: SurveyOptions
    ) -> None:
        self.report, self.encoder, self.chunks = report, encoder, chunks
        self.most = options.rows
        few = chunks.num_rows is not None and chunks.num_rows <= self.most
        report.complete = self.most == 0 or few
        self._lengths = array("q")
        self._kept: list[tuple[str, Example]] = []
        self._random = random.Random(0)

    def run(self) -> list[tuple[str, Example]]:
        """Fill in the report; (place, example) of some examples."""
        report, source, stats = self.report, self.encoder.source, self.encoder.stats
        if source.postprocess:
            why = "rewrites the whole source: see its numbers with --rows 0, or once prepared"
            uses_model = POSTPROCESS.get(source.postprocess).uses_model
            if uses_model:
                why = (
                    "needs the model: it runs at the start of `train`, and numbers are known there"
                )
            if uses_model or not report.complete:
                report.notes.append(f"the hook {source.postprocess!r} {why}")
                return []
        # So many rows out of all are not so many out of a sample: that is a matter of scale.
        selection = Selection(source if report.complete else replace(source, sample_rows=None))
        selects = source.deduplicate or source.difficulty or source.sample_rows is not None
        for (place, row), examples in self._encoded():
            with self.encoder.accounting(place):
                if examples and selects:
                    selection.add(row, examples)
                self._note(place, examples)
        lengths = np.frombuffer(self._lengths, dtype=np.int64)
        if selects:
            index, _ = selection.choose(stats)
            lengths = lengths if index is None else lengths[index]
        self._conclude(source.sample_rows if selection.source is not source else None)
        if len(lengths):
            report.lengths = Lengths.of(lengths)
        elif report.complete:
            raise DataError(self.encoder.why_empty())
        return self._kept

    def _encoded(self) -> Iterator[tuple[Located, list[Example]]]:
        chosen = bool(self.encoder.source.postprocess)
        rows = iter(self._rows())
        if chosen:
            rows = hooked_rows(self.encoder, rows, None)
        while some := list(islice(rows, ROWS_AT_ONCE)):
            yield from zip(some, self.encoder.encode(some, chosen), strict=True)
            tick(len(some))
            if not self.report.complete and self.encoder.stats.tokens >= TOKENS_READ:
                return

    def _rows(self) -> Iterable[Located]:
        """All rows, or the first ones of chunks chosen by chance."""
        if self.report.complete:
            yield from self.chunks.rows()
            return
        chunks, left, ended = self.chunks, self.most, 0
        each = -(-self.most // min(len(chunks), CHUNKS_READ))
        for chunk in _spread(len(chunks)):
            rows = iter(chunks.read(chunk))
            for located in islice(rows, min(each, left)):
                left -= 1
                yield located
            ended += next(rows, None) is None
            if not left:
                break
        self.report.complete = ended == len(chunks)

    def _note(self, place: Any, examples: list[Example]) -> None:
        """Lengths of all, and every example with the same chance of being kept."""
        for example in examples:
            self._lengths.append(len(example))
            if len(self._kept) < EXAMPLES_KEPT:
                self._kept.append((str(place), example))
            elif (slot := self._random.randrange(len(self._lengths))) < EXAMPLES_KEPT:
                self._kept[slot] = str(place), example

    def _conclude(self, sample_rows: int | None) -> None:
        """Sizes of the whole source, from those of the rows read."""
        report, source, stats = self.report, self.encoder.source, self.encoder.stats
        report.stats, report.bad_rows = stats, self.encoder.bad
        report.stops = bool(stats.bad_rows) and source.on_bad_row == "error"
        if report.complete:
            report.rows, report.rows_exact = stats.rows, True
        elif self.chunks.num_rows is None:
            report.rows, report.rows_exact = count_rows(self.chunks), False
        if not report.complete and source.deduplicate:
            report.notes.append("duplicates are counted within the sample only")
        if report.rows is None or not stats.rows:
            return
        scale = report.rows / stats.rows
        if sample_rows is not None:
            left_out = stats.filtered + stats.duplicates + stats.dropped + stats.bad_rows
            kept = (stats.rows - left_out - stats.without_targets) * scale
            scale *= min(1.0, sample_rows / max(1.0, kept))
        sizes = (stats.examples, stats.tokens, stats.targets)
        report.examples, report.tokens, report.targets = (size * scale for size in sizes)


def _from_store(report: SourceReport, store: TokenStore) -> list[tuple[str, Example]]:
    """What was counted as it was prepared; examples spread over all."""
    stats = store.stats
    report.complete, report.stats, report.rows = True, stats, stats.rows
    report.examples, report.tokens, report.targets = stats.examples, stats.tokens, stats.targets
    report.lengths = Lengths.of(store.lengths)
    chosen = np.linspace(0, len(store) - 1, min(len(store), EXAMPLES_KEPT)).astype(int).tolist()
    return [(f"prepared example {number}", store[number]) for number in chosen]


def _spread(size: int) -> Iterator[int]:
    """All numbers below `size`; the first of them are spread evenly, however many are taken.

    Steps of the golden section: rows that change along a source are then told without chance.
    """
    step = max(1, round(size * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, size) > 1:
        step += 1
    return (number * step % size for number in range(size))
