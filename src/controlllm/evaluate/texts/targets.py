"""Teacher forcing: which tokens of the right answer a model would have written, and how likely."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from controlllm.common.distributed import ALONE, Ranks
from controlllm.common.losses import cross_entropy_sum, hits_sum
from controlllm.data import TRAIN, Batch, Example
from controlllm.data.loader.collate import padded_batch
from controlllm.evaluate.forgetting.losses import deal, evaluating, model_logits, split_batch

__all__ = ["TargetScore", "score_targets"]


@dataclass(frozen=True)
class TargetScore:
    """What a model says of the targets of one row.

    Attributes:
        log_probability: of all of them together, in nats.
        hits: how many are the model's likeliest token.
        targets: how many there are.
    """

    log_probability: float
    hits: int
    targets: int


def score_targets(
    model: nn.Module,
    examples: Sequence[Example],
    batch_size: int,
    pad_id: int,
    ranks: Ranks = ALONE,
) -> list[TargetScore]:
    """Score each row's targets by forward passes over prompt and answer.

    Args:
        model: any causal language model of transformers; its training mode is restored.
        examples: rows with their targets.
        batch_size: rows of a forward pass.
        pad_id: what shorter rows are filled up with.
        ranks: processes that share the model, each with all rows: they deal them out. Collective
            then.

    Returns:
        A score for each row, in order, on every process.
    """
    longest = max(map(len, examples), default=0)
    batches: list[Batch] = [
        padded_batch([[(one, TRAIN)] for one in examples[i : i + batch_size]], longest, pad_id)
        for i in range(0, len(examples), batch_size)
    ]
    own = []
    with evaluating(model):
        for batch in deal(batches, model, ranks):
            inputs, labels_BT = split_batch(batch)
            logits_BTV = model_logits(model, inputs)
            rows = zip(logits_BTV, labels_BT, strict=True)
            own.append([_score(logits_TV[None], labels_T[None]) for logits_TV, labels_T in rows])
    # Batch i was computed by process i mod n, as its i div n-th; what is over was a filler.
    shares = ranks.gather(own)
    size = ranks.world_size
    return [one for i in range(len(batches)) for one in shares[i % size][i // size]]


def _score(logits_1TV: Any, labels_1T: Any) -> TargetScore:
    loss, count = cross_entropy_sum(logits_1TV, labels_1T)
    return TargetScore(-float(loss), int(hits_sum(logits_1TV, labels_1T)[0]), int(count))
