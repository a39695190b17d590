"""Losses over processes are means over tokens, whatever process computed which of them."""

from pathlib import Path

import pytest
import torch
from tests.evaluate.samples import LN, SAME, Bigram, padded
from tests.processes import run_ranks, values

from controlllm.common.distributed import Ranks
from controlllm.evaluate import LossReport, Reference, evaluate_losses, measure_retention


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

    def measure(rank: int) -> tuple[float, float, float, int]:
        torch.set_num_threads(1)
        found = measure_retention(model, batches, Reference(model, copy=base), Ranks.current())
        return found.loss, found.base_loss, found.kl, found.tokens

    for loss, base_loss, kl, tokens in values(run_ranks(measure, 2, tmp_path)):
        assert tokens == alone.tokens
        found = (loss, base_loss, kl)
        assert found == pytest.approx((alone.loss, alone.base_loss, alone.kl), rel=1e-6)
