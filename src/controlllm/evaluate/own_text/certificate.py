"""How far a model moved from its base, on text that the base itself wrote, with a bound.

KL <= 0.010 nats per token (95 %, 64 sequences, 16,320 tokens)
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.distributed import ALONE, Ranks
from controlllm.data import DataConfig, Example, eval_batches
from controlllm.evaluate.forgetting.own import is_own_text, rounded_up, variation_bound
from controlllm.evaluate.forgetting.reference import Reference
from controlllm.evaluate.forgetting.retention import RetentionReport, measure_settings
from controlllm.evaluate.own_text.sets import write_own_text
from controlllm.evaluate.own_text.settings import OwnTextConfig
from controlllm.evaluate.own_text.writing import Writer
from controlllm.expansion.files.fingerprint import fingerprint

__all__ = ["Certificate", "certificates", "certify"]

LEVEL = 0.95
"""What is promised."""
_QUANTILE = 0.99
"""Student's quantile that the bound takes to keep the promise where sums are skewed.

Of 500 simulated samples each (log-normal and gamma rates per sequence, standard deviation 0.3 to
over 1 times the mean; lengths fixed or geometric; 32, 64 and 256 sequences) the bound held in 95.4
to 99.0 %. With the 95 % quantile it held in 88 to 95 %, without the logarithm in 85 to 95 %, and a
bootstrap of Student's t (512 sequences, too) in 86 to 97 %. On sequences of one length that a real
base wrote the standard deviation was 0.09 times the mean: there the stricter quantile costs little.
"""


@dataclass(frozen=True)
class Certificate:
    """KL(base || model) per token of text that the base wrote, and an upper bound.

    On such text the expected rise of the loss *is* this KL. `kl` is taken position by position over
    the whole vocabulary: it has the same mean as the difference of the losses
    (`RetentionReport.forgetting`), and none of the noise of which token the base happened to draw.
    It is a ratio of sums, the sequences are the independent units, and the bound is taken on its
    logarithm, as sums of KL are skewed.

    Attributes:
        kl: the estimate, in nats per token.
        error: its standard error; None where there are fewer than two sequences.
        sequences: how many the base wrote.
        tokens: how many of their tokens it wrote, prompts and template not counted.
    """

    kl: float
    error: float | None
    sequences: int
    tokens: int

    @classmethod
    def of(cls, report: RetentionReport) -> "Certificate":
        """The certificate of a set of own text, as it was measured."""
        return cls(report.kl, report.kl_error, report.documents, report.tokens)

    @property
    def upper(self) -> float:
        """The one-sided 95 % upper bound of the KL, in nats per token; inf where none can be."""
        if self.error is None or math.isnan(self.kl):
            return math.inf
        wide = student_quantile(_QUANTILE, self.sequences - 1) * self.error
        if self.kl <= 0:  # The base itself, but for rounding.
            return max(self.kl, 0.0) + wide
        ratio = wide / self.kl
        return self.kl * math.exp(ratio) if ratio < 700 else math.inf

    @property
    def precision(self) -> float:
        """How far the bound is above the estimate, in nats per token."""
        return self.upper - self.kl

    @property
    def total_variation(self) -> float:
        """Upper bound of the mean total variation distance per token, 0 to 1."""
        return variation_bound(self.upper)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON; None for a bound that cannot be."""
        upper = None if math.isinf(self.upper) else self.upper
        return {
            "kl": self.kl,
            "upper": upper,
            "level": LEVEL,
            "total_variation": self.total_variation,
            "sequences": self.sequences,
            "tokens": self.tokens,
        }

    def __str__(self) -> str:
        told = f"{100 * LEVEL:.0f} %, {self.sequences:,} sequences, {self.tokens:,} tokens"
        return (
            f"KL <= {rounded_up(self.upper)} nats per token ({told}); "
            f"total variation <= {rounded_up(self.total_variation)}"
        )


def certify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    settings: OwnTextConfig | None = None,
    data: DataConfig | None = None,
    reference: Reference | None = None,
    batch_size: int = 8,
    first_block: int = 0,
    ranks: Ranks = ALONE,
) -> dict[str, Certificate]:
    """Let the base write, and measure how far the model, at its dial, moved from it on that text.

    Args:
        model: the trained model.
        tokenizer: its tokenizer.
        folder: where what the base writes is cached.
        settings: how much it writes. Where a precision is wished, sequences are added in blocks of
            `num_sequences` until every set has it, or `max_sequences`.
        data: `max_length`, `chat_template` and how batches are made.
        reference: the base, where the model does not carry it inside.
        batch_size: rows of a batch.
        first_block: the first block of sequences; others than those that chose something (a dial)
            judge the choice fairly.
        ranks: processes that share the model; the first one writes. Collective then.

    Returns:
        A certificate for each set: `own_text`, and `own_text_chat` where there is a template.

    Raises:
        ConfigError: there is nothing to write from.
        ModelError: the model carries no base, and no reference is given.
    """
    settings, data = settings or OwnTextConfig(measure=True), data or DataConfig()
    reference = reference or Reference(model)
    writer = _writer(reference)
    examples: dict[str, list[Example]] = defaultdict(list)
    blocks, wanted = 0, 1
    most = max(1, settings.max_sequences // settings.num_sequences)
    while True:
        for block in range(first_block + blocks, first_block + wanted):
            written = ranks.first(
                partial(write_own_text, writer, tokenizer, settings, data, folder, block)
            )
            for name, own in written.items():
                examples[name] += own
        blocks = wanted
        found: dict[str, Certificate] = {}
        for name, own in examples.items():
            batches = eval_batches(own, tokenizer, data, batch_size)
            # As it is; what is recorded of its gates is that on text which it learned.
            report = measure_settings(model, batches, [lambda: None], reference, ranks)[0]
            found[name] = Certificate.of(report)
        wished = math.inf if settings.precision is None else settings.precision
        precisions = [one.precision for one in found.values()]
        largest = max(precisions, default=0.0)
        # Of a model that diverged none is a number: more text would not help.
        if blocks >= most or largest <= wished or any(map(math.isnan, precisions)):
            return found
        # The error falls with the root of their number.
        ratio = min(largest / wished, 1e3)
        wanted = min(most, max(blocks + 1, math.ceil(blocks * ratio**2)))


def _writer(reference: Reference) -> Writer:
    """The base as a writer."""
    model: Any = reference.copy
    if model is not None:
        return Writer.base(model)
    model = reference.model
    return Writer(model, fingerprint(model), reference.inside)


def certificates(reports: Mapping[str, RetentionReport]) -> dict[str, Certificate]:
    """The certificates of the sets that are own text, by their names."""
    return {name: Certificate.of(one) for name, one in reports.items() if is_own_text(name)}


def student_quantile(level: float, freedom: int) -> float:
    """Student's quantile, by the expansion around the normal one (0.1 % low at 4 degrees)."""
    z = NormalDist().inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
