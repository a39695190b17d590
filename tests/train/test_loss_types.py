"""Types of loss: their weights by hand, and that a run learns by them however it is computed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.helpers import losses_of

from controlllm.common.errors import ConfigError
from controlllm.common.losses import cross_entropy_sum, weighted_cross_entropy_sum
from controlllm.train import LOSS_TYPES, RunConfig, train
from controlllm.train.setup.ready import set_up

WEIGHTED = [name for name in LOSS_TYPES.names() if name != "ce"]


def weights(name: str, p: list[list[float]], targets: list[int]) -> list[float]:
    weigh = LOSS_TYPES.get(name)
    assert weigh is not None
    found: list[float] = weigh(torch.tensor(p).log() + 3.0, torch.tensor(targets)).tolist()
    return found


def test_ce_weighs_nothing() -> None:
    assert LOSS_TYPES.get("ce") is None


def test_dft_is_the_probability_of_the_target() -> None:
    p = [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1.0, 0.0, 0.0]]
    assert weights("dft", p, [0, 2, 1]) == pytest.approx([0.5, 0.1, 0.0])


def test_eaft_is_the_entropy_as_a_share_of_the_largest() -> None:
    """Whatever the target is: only how sure the model is counts."""
    p = [[0.25] * 4, [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.7, 0.1, 0.1, 0.1]]
    by_hand = -(0.7 * math.log(0.7) + 0.3 * math.log(0.1)) / math.log(4)
    assert weights("eaft", p, [0, 3, 3, 1]) == pytest.approx([1.0, 0.5, 0.0, by_hand], abs=1e-6)


def test_eaft_looks_at_the_twenty_likeliest_tokens_among_themselves() -> None:
    """Of 40 tokens twenty have 0.045 each, and share all but 0.1: the others are not looked at."""
    assert weights("eaft", [[0.045] * 20 + [0.005] * 20], [39]) == pytest.approx([1.0])
    sure = [0.81, *[0.14 / 19] * 19, *[0.0025] * 20]
    among = [one / 0.95 for one in sure[:20]]
    by_hand = -sum(one * math.log(one) for one in among) / math.log(20)
    assert weights("eaft", [sure], [0]) == pytest.approx([by_hand], rel=1e-5)


@pytest.mark.parametrize("name", WEIGHTED)
def test_the_gradient_is_that_of_the_cross_entropy_times_a_constant(name: str) -> None:
    logits = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[1, 2, -100, 3, 4], [-100, -100, 5, 6, 0]])
    weigh: Any = LOSS_TYPES.get(name)
    weighted_cross_entropy_sum(logits, labels, weigh).backward()
    assert logits.grad is not None
    ours, logits.grad = logits.grad, None
    cross_entropy_sum(logits, labels)[0].backward()
    assert logits.grad is not None
    flat = logits.detach()[:, :-1].flatten(0, 1)
    factors = weigh(flat, labels[:, 1:].flatten().clamp(min=0)).view(2, 4, 1)
    torch.testing.assert_close(ours[:, :-1], factors * logits.grad[:, :-1])
    assert ours.abs().sum() > 0.1
    assert not ours[labels.roll(-1, 1) == -100].any()


@pytest.mark.parametrize(
    ("name", "method"), [("dft", "full"), ("eaft", "control"), ("eaft", "lora")]
)
def test_the_loss_of_a_step_by_hand(run_config: Any, loaded: Any, name: str, method: str) -> None:
    """Divided by the number of targets, not by the sum of the weights."""
    over = {"expansion": {"divergence": "none"}} if method == "control" else {"expansion": {}}
    run = run_config(method=method, training={"loss_type": name}, **over)
    ready = set_up(run, loaded())
    batches = ready.next_batches()
    counts = ready.loss.count(batches)
    loss = sum(ready.loss.micro_batch(batch, counts).item() for batch in batches)
    ready.loader.close()
    expected, targets = 0.0, 0
    for batch in batches:
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "origin")}
        with torch.no_grad():
            logits = ready.model(**inputs).logits
        for row, labels in enumerate(batch["labels"]):
            for place in range(len(labels) - 1):
                if (target := int(labels[place + 1])) != -100:
                    p = logits[row, place].softmax(-1)
                    top = p.topk(20).values
                    share = float((top / top.sum()).log().mul(top / top.sum()).sum())
                    factor = {"dft": float(p[target]), "eaft": -share / math.log(20)}[name]
                    expected -= factor * math.log(p[target])
                    targets += 1
    assert counts.targets == targets
    assert loss == pytest.approx(expected / targets, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("dft", "chunks"), *(("eaft", kind) for kind in ("chunks", "hf", "resumed", "micro-batches"))],
)
def test_a_run_is_the_same_however_it_is_computed(
    run_config: Any, loaded: Any, tmp_path: Path, name: str, kind: str
) -> None:
    rehearsal = {"num_sequences": 4, "share": 0.5, "length": 16}
    loss = {"loss_type": name}

    def history(folder: str, **over: Any) -> list[dict[str, Any]]:
        training = {**loss, "output_dir": str(tmp_path / folder), **over}
        return losses_of(
            train(run_config(training=training, rehearsal=rehearsal), loaded()).history
        )

    straight = history("straight")
    if kind == "resumed":
        history("other", max_tokens=1)  # A step, and its checkpoint.
        other = history("other")
    else:
        over: dict[str, dict[str, Any]] = {
            "chunks": {"loss_chunk_size": 5},
            "hf": {"backend": "hf"},
            "micro-batches": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        }
        other = history("other", **over[kind])
    names = ("train/loss", "train/cross_entropy", "train/rehearsal")
    rows = [[row[n] for row in each for n in names if n in row] for each in (straight, other)]
    assert len(rows[0]) == 18  # three of each of six steps
    assert rows[1] == pytest.approx(rows[0], rel=1e-9 if kind == "resumed" else 1e-4)


def test_a_name_that_is_none_and_the_fused_loss_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.loss_type='eeft' .* mean 'eaft'"):
        RunConfig.from_dict({"training": {"loss_type": "eeft"}})
    with pytest.raises(ConfigError, match="sums cross-entropies without weights"):
        RunConfig.from_dict({"training": {"loss_type": "eaft", "use_liger_kernel": True}})
    kernels = {
        "use_liger_kernel": True,
        "liger_kernel_config": {"fused_linear_cross_entropy": False},
    }
    RunConfig.from_dict({"training": {"loss_type": "eaft", **kernels}})


def test_a_run_does_not_go_on_with_another_loss(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    train(run_config(training={"max_tokens": 1}), loaded())
    with pytest.raises(ConfigError, match="loss_type"):
        train(run_config(training={"loss_type": "eaft"}), loaded())
