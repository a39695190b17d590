"""What `controlllm data inspect` tells of a source: numbers, a line of bars, texts with their mask.

Pure: examples and counts in, numbers and texts out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from controlllm.common.losses import IGNORE_INDEX
from controlllm.data.examples.encode import Example, SourceStats
from controlllm.data.examples.spans import shared_length

__all__ = ["Kind", "Lengths", "Sample", "SourceReport", "Span", "bars", "mask_spans", "shorten"]

BINS = 40
"""The most bars of a histogram."""

_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", ".:-=+*#@"
_SPANS_SHOWN = 16

Kind: TypeAlias = Literal["target", "context", "note"]
"""Of a part of a sample: trained on, only read, or a remark of ours about what is not shown."""


class Span(NamedTuple):
    """A part of a sample's text."""

    text: str
    kind: Kind


@dataclass(frozen=True)
class Lengths:
    """How long examples are, in tokens."""

    mean: float
    median: int
    """Half of the examples are at most so long."""
    p95: int
    """19 of 20 examples are at most so long."""
    longest: int
    bin_width: int
    """Bar i counts the lengths i * bin_width + 1 to (i + 1) * bin_width."""
    counts: list[int]
    """Examples in each bar."""

    @classmethod
    def of(cls, lengths: NDArray[np.int64]) -> "Lengths":
        """Of at least one length, each at least 1."""
        longest = int(lengths.max())
        width = -(-longest // BINS)
        counts = np.bincount((lengths - 1) // width, minlength=-(-longest // width))
        middle, high = np.percentile(lengths, [50, 95], method="inverted_cdf")
        mean = float(lengths.mean())
        return cls(mean, int(middle), int(high), longest, width, counts.astype(int).tolist())


@dataclass(frozen=True)
class Sample:
    """An example as text."""

    place: str
    """The row it was made of."""
    tokens: int
    targets: int
    """How many of them are targets."""
    spans: list[Span]
    """Its text, cut where the mask changes."""


@dataclass
class SourceReport:
    """All that is told of one source. Counts are of the rows read, sizes of the whole source."""

    group: str
    """`train`, `replay`, `learn` or `retain`."""
    name: str
    """As metrics call it."""
    path: str
    """Where it lies, without a password."""
    files: int | None = None
    """Files, where chunks are parts of files."""
    chunks: int = 0
    """Chunks that shuffling, lanes and resuming work with."""
    by_row: bool = False
    """Whether each chunk is one row."""
    bytes: int | None = None
    """Bytes as stored, where known."""
    rows: int | None = None
    """Rows of the source; None where only reading all would tell."""
    rows_exact: bool = True
    """Whether `rows` was counted, or estimated from some chunks."""
    complete: bool = False
    """Whether every row was read, so that all numbers are exact."""
    stats: SourceStats = field(default_factory=SourceStats)
    """What became of the rows read."""
    examples: float | None = None
    """Examples of one epoch, exact or estimated."""
    tokens: float | None = None
    """Tokens of one epoch, exact or estimated."""
    targets: float | None = None
    """Targets of one epoch, exact or estimated."""
    lengths: Lengths | None = None
    """How long the examples are."""
    bad_rows: list[str] = field(default_factory=list)
    """The first bad rows: file, row and reason."""
    stops: bool = False
    """Whether `train` would stop at a bad row (`on_bad_row: error`)."""
    prepared: str | None = None
    """The folder of its prepared tokens, if there are any."""
    notes: list[str] = field(default_factory=list)
    """What the numbers do not show."""
    samples: list[Sample] = field(default_factory=list)
    """Some examples as texts."""
    error: str | None = None
    """Why it cannot be used at all."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        values = asdict(self)
        for sample in values["samples"]:
            sample["spans"] = [{"text": text, "kind": kind} for text, kind in sample["spans"]]
        return values


def bars(counts: Sequence[int], plain: bool = False) -> str:
    """One character for each count: a bar as high as the count, blank for 0."""
    marks, highest = _PLAIN_BARS if plain else _BARS, max(counts, default=0)
    return "".join(
        marks[-(-count * len(marks) // highest) - 1] if count else " " for count in counts
    )


def mask_spans(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """The text of an example, special tokens included, cut where the mask changes.

    A character whose tokens lie on both sides of a cut belongs to the later part.
    """
    is_target = example.labels != IGNORE_INDEX
    cuts = [*(np.flatnonzero(np.diff(is_target)) + 1).tolist(), len(example)]
    # Beginnings are decoded, not parts: tokenizers treat the first token of a text differently.
    options: Any = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    ids = example.input_ids.tolist()
    texts = [str(tokenizer.decode(ids[:cut], **options)) for cut in cuts]
    # The last of a beginning may be half a character.
    ends = [shared_length(text, texts[-1]) for text in texts]
    starts = [0, *ends[:-1]]
    return [
        Span(texts[-1][start:end], "target" if is_target[cut - 1] else "context")
        for start, end, cut in zip(starts, ends, cuts, strict=True)
    ]


def shorten(spans: Sequence[Span], most: int) -> list[Span]:
    """Spans of at most about `most` characters each, with remarks on what was left out."""
    shown = list(spans[:_SPANS_SHOWN])
    if left := len(spans) - len(shown):
        shown.append(Span(f"[... {left:,} more parts ...]", "note"))
    return [part for span in shown for part in _shortened(span, most)]


def _shortened(span: Span, most: int) -> Iterable[Span]:
    text, kind = span
    if kind == "note" or len(text) <= most:
        return [span]
    head, tail = most * 3 // 4, most // 4
    remark = f" [... {len(text) - head - tail:,} more characters ...] "
    return [Span(text[:head], kind), Span(remark, "note"), Span(text[-tail:], kind)]
