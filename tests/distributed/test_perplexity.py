"""Losses over processes are means over tokens, whatever process computed which of them."""

from pathlib import Path

import pytest
import torch
from tests.evaluate.samples import LN, SAME, Bigram, padded
from tests.processes import run_ranks, values

from controlllm.common.distributed import ALONE, Ranks
from controlllm.data import DataConfig
from controlllm.evaluate import (
    Certificate,
    LossReport,
    OwnTextConfig,
    Reference,
    RetentionReport,
    certify,
    evaluate_losses,
    measure_retention,
)


@pytest.mark.parametrize("count", [2, 3])
def test_perplexity_over_processes_is_exact_to_the_token(tmp_path: Path, count: int) -> None:
    # Batches of 1, 5, 2 and 7 targets: a mean of the batches' or the processes' means is another.
    rows = [[[0, 1]], [[0, 0, 1], [1, 1, 1, 1]], [[1, 0, 0]], [[0] * 8]]
    batches = [padded(some) for some in rows]

    def measure(rank: int) -> LossReport:
        return evaluate_losses(Bigram(SAME), batches, Ranks.current())

    # Pairs that repeat a token (3/4) and that change it (1/4).
    same = 0 + (1 + 3) + 1 + 7
    change = 1 + 1 + 1 + 0
    by_hand = -(same * LN(0.75) + change * LN(0.25)) / (same + change)
    reports = values(run_ranks(measure, count, tmp_path))
    assert [report.tokens for report in reports] == [15] * count
    for report in reports:
        assert report.loss == pytest.approx(by_hand, rel=1e-6)
        assert report.perplexity == pytest.approx(0.75 ** (-same / 15) * 0.25 ** (-change / 15))
    means = [evaluate_losses(Bigram(SAME), [batch]).loss for batch in batches]
    assert sum(means) / len(means) != pytest.approx(by_hand, rel=1e-2)


def test_forgetting_over_processes_is_exact_to_the_token(
    tmp_path: Path,
    pico_llama,
    documents,  # type: ignore[no-untyped-def]
) -> None:
    batches = [padded(documents[:1]), padded(documents[1:3]), padded(documents[3:])]
    model, base = pico_llama(seed=1), pico_llama(seed=2)
    alone = measure_retention(model, batches, Reference(model, copy=base))

    def numbers(found: RetentionReport) -> tuple[float | None, ...]:
        return found.loss, found.base_loss, found.kl, found.kl_error

    def measure(rank: int) -> RetentionReport:
        torch.set_num_threads(1)
        return measure_retention(model, batches, Reference(model, copy=base), Ranks.current())

    for found in values(run_ranks(measure, 2, tmp_path)):
        assert (found.tokens, found.documents) == (alone.tokens, alone.documents)
        assert numbers(found) == pytest.approx(numbers(alone), rel=1e-5)


def test_a_certificate_over_processes_is_the_one_of_a_single_process(
    tmp_path: Path,
    pico_llama,
    pico_tokenizer,  # type: ignore[no-untyped-def]
) -> None:
    model, base = pico_llama(seed=1), pico_llama(seed=2)
    settings = OwnTextConfig(num_sequences=8, precision=1e-9, max_sequences=16, measure=True)

    def measure(folder: str, ranks: Ranks) -> Certificate:
        torch.set_num_threads(1)
        reference, data = Reference(model, copy=base), DataConfig(max_length=24)
        found = certify(
            model, pico_tokenizer, tmp_path / folder, settings, data, reference, 3, ranks=ranks
        )
        return found["own_text"]

    alone = measure("one", ALONE)
    assert alone.sequences == 16
    for found in values(run_ranks(lambda rank: measure("two", Ranks.current()), 2, tmp_path)):
        assert (found.sequences, found.tokens) == (alone.sequences, alone.tokens)
        assert (found.kl, found.upper) == pytest.approx((alone.kl, alone.upper), rel=1e-5)
