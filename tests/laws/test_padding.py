"""The padding token's id changes nothing, whichever loop trains or measures; padded and packed."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.laws.architectures import VOCAB
from tests.laws.models import VARIANTS, make_trained

from controlllm.common.losses import cross_entropy_sum
from controlllm.data import REHEARSAL, TRAIN, Batch, model_inputs
from controlllm.data.examples.encode import Example
from controlllm.data.loader.collate import packed_batch, padded_batch
from controlllm.evaluate import Reference, evaluate_losses
from controlllm.train.step.losses import StepLoss, StepReport

LAYOUTS = pytest.mark.parametrize("layout", ["padded", "packed"])
SLOT = 16


def batch_of(layout: str, pad_id: int) -> Batch:
    """Three documents in two slots (or rows), one of them rehearsed; much room is left."""
    random = np.random.default_rng(0)
    members = []
    for length, origin in ((5, TRAIN), (4, REHEARSAL), (9, TRAIN)):
        ids = random.integers(3, VOCAB, length).astype(np.int32)
        labels = ids.copy()
        labels[:2] = -100
        members.append((Example(ids, labels), origin))
    if layout == "padded":
        return padded_batch([[member] for member in members], SLOT, pad_id)
    return packed_batch([members[:2], members[2:]], SLOT, pad_id)


def loss_of_the_model(model: Any, batch: Batch) -> torch.Tensor:
    """A loop of one's own that trains on the model's loss."""
    return model(**model_inputs(batch)).loss


def loss_of_the_loop(model: Any, batch: Batch) -> torch.Tensor:
    """A loop of one's own that knows nothing of divergences."""
    inputs = {k: v for k, v in model_inputs(batch).items() if k != "labels"}
    total, count = cross_entropy_sum(model(**inputs).logits, batch["labels"])
    return total / count


def loss_of_ours(model: Any, batch: Batch) -> torch.Tensor:
    """The step of our trainers, with rehearsal by KL."""
    step, report = StepLoss(model, Reference(model), rehearsal_weight=1.0), StepReport()
    loss = step.micro_batch(batch, step.count([batch]), report)
    assert report.losses.keys() == {"cross_entropy", "divergence", "rehearsal"}
    return loss


ALL_LOOPS = (loss_of_the_model, loss_of_the_loop, loss_of_ours)
LOOPS = pytest.mark.parametrize("loop", ALL_LOOPS)


def measured(loop: Any, model: Any, batch: Batch) -> tuple[float, dict[int, float], dict[str, Any]]:
    """Loss, divergence per block, and gradients."""
    loss = loop(model, batch)
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), model.divergence, found


@LAYOUTS
@pytest.mark.parametrize(
    ("loop", "variant"),
    [(loop, "concat") for loop in ALL_LOOPS[1:]] + [(loss_of_the_model, v) for v in VARIANTS],
)
def test_the_padding_id_changes_no_loss_and_no_gradient(
    layout: str, loop: Any, variant: str
) -> None:
    model = make_trained("llama", variant).train()
    (loss, divergence, grads), (other, other_divergence, other_grads) = (
        measured(loop, model, batch_of(layout, pad_id)) for pad_id in (0, 7)
    )
    assert other == pytest.approx(loss, rel=1e-6)
    assert other_divergence == pytest.approx(divergence, rel=1e-6)
    assert any(divergence.values()) or variant == "stack"
    for name, grad in grads.items():
        torch.testing.assert_close(other_grads[name], grad, rtol=1e-4, atol=1e-6)


@LOOPS
def test_packed_is_padded(loop: Any) -> None:
    """The same documents, however they are laid out."""
    model = make_trained("llama").train()
    padded, packed = (measured(loop, model, batch_of(layout, 0)) for layout in ("padded", "packed"))
    assert packed[0] == pytest.approx(padded[0], rel=1e-5)
    assert packed[1] == pytest.approx(padded[1], rel=1e-5)


@LAYOUTS
def test_the_padding_id_changes_no_evaluation(layout: str) -> None:
    """Loss, and the mean alpha of a token gate."""
    model = make_trained("llama", "dlerp")
    first, second = (batch_of(layout, pad_id) for pad_id in (0, 7))
    losses, alphas = [], []
    for batch in (first, second):
        losses.append(evaluate_losses(model, [batch]))
        alphas.append(model.expansion.mean_alpha)
    assert losses[1] == losses[0]
    assert alphas[1] == pytest.approx(alphas[0], rel=1e-6)
