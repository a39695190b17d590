"""Trials that add to the loss of a step, by hand; and the rate by the loss."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.study.plan import Arm, Cell
from benchmarks.study.trials import anchor, finch, gate

from controlllm.common.errors import ConfigError
from controlllm.data import REHEARSAL, TRAIN, Example
from controlllm.data.loader.collate import packed_batch, padded_batch
from controlllm.evaluate import Reference
from controlllm.expansion import ExpansionConfig, expand
from controlllm.train import RunConfig, train
from controlllm.train.setup import ready
from controlllm.train.step.losses import StepLoss, StepReport


def row(length: int, prompt: int) -> Example:
    ids = np.random.default_rng(length).integers(3, 259, length).astype(np.int32)
    labels = ids.copy()
    labels[:prompt] = -100
    return Example(ids, labels)


MEMBERS = [(row(6, 3), TRAIN), (row(4, 1), REHEARSAL), (row(5, 2), TRAIN)]
PADDED = padded_batch([[member] for member in MEMBERS], 8, 0)


@pytest.mark.parametrize(
    ("tokens", "places"),
    [
        ("targets", [[2, 3, 4], [1, 2, 3]]),
        ("prompts", [[0, 1], [0]]),
        ("all", [[0, 1, 2, 3, 4], [0, 1, 2, 3]]),
    ],
)
def test_the_chosen_positions_are_of_new_text_only(tokens: str, places: list[list[int]]) -> None:
    mask = anchor.chosen(PADDED, tokens)
    assert [m.nonzero()[:, 0].tolist() for m in mask] == [places[0], [], places[1]]
    packed = anchor.chosen(packed_batch([MEMBERS], 16, 0), tokens)[0]
    assert packed.nonzero()[:, 0].tolist() == [*places[0], *(10 + at for at in places[1])]


@pytest.mark.parametrize("by", [None, "entropy", "sureness"])
def test_the_anchor_by_hand(pico_llama: Any, by: str | None) -> None:
    model = expand(pico_llama(initializer_range=0.1), ExpansionConfig(num_blocks=2))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    with anchor.Trial(0.3, "prompts", by).training():
        loss = ready.StepLoss(model, Reference(model), 1.0)
    assert ready.StepLoss is StepLoss
    counts, report = loss.count([PADDED]), StepReport()
    loss.micro_batch(PADDED, counts, report).backward()
    inputs = {k: PADDED[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        tuned = model(**inputs).logits.log_softmax(-1)
        model.set_alpha(0)
        base = model(**inputs).logits.log_softmax(-1)
    expected = []
    for place in ((0, 0), (0, 1), (2, 0)):
        p, q = base[place], tuned[place]
        top = p.exp().topk(20).values
        top = top / top.sum()
        unsure = -float((top * top.log()).sum()) / math.log(20)
        weight = {None: 1.0, "entropy": unsure, "sureness": 1 - unsure}[by]
        expected.append(weight * float((p.exp() * (p - q)).sum()))
    assert report.losses["anchor"].item() == pytest.approx(0.3 * sum(expected) / 3, rel=1e-4)
    assert min(expected) > 1e-4
    plain = StepLoss(model, Reference(model), 1.0)
    assert plain.count([PADDED]) == counts


def test_a_trial_of_the_wrong_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="targets"):
        anchor.Trial(0.1, "target")
    with pytest.raises(ConfigError, match="entropy"):
        anchor.Trial(0.1, by="entropie")


def run_values(folder: Path, text: Path) -> dict[str, Any]:
    return {
        "expansion": {"num_blocks": 2},
        "data": {"train": [{"path": str(text)}], "max_length": 32},
        "training": {
            "output_dir": str(folder),
            "max_steps": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "save_steps": 100,
        },
        "logging": {"logging_steps": 1, "report_to": ["jsonl"]},
    }


def test_answers_are_learned_and_prompts_are_held(
    tmp_path: Path, pico_llama: Any, pico_tokenizer: Any
) -> None:
    text = tmp_path / "new-train.txt"
    text.write_text("\n\n".join(f"What is {i}+1?\nIt is {i + 1}.\nYes." for i in range(40)))
    trial = anchor.Trial(0.5, "prompts", answers=True)
    cell = Cell("a", Arm(), "gsm8k", 1e-2, 0)
    values = trial.values(cell, {"train": str(text)})
    lines = Path(values["data"]["train"][0]["path"]).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[3] == {"prompt": "What is 3+1?\n", "completion": "It is 4.\nYes."}
    run = run_values(tmp_path / "run", text)
    run["data"] |= values["data"]
    run["rehearsal"] = {"num_sequences": 4, "share": 0.25, "length": 16}
    with trial.training():
        result = train(RunConfig.from_dict(run), (pico_llama(), pico_tokenizer))
    first, *rest = [row["train/anchor"] for row in result.history if "train/anchor" in row]
    assert first == pytest.approx(0, abs=1e-6) and all(one > 1e-6 for one in rest)


def test_the_push_by_hand(pico_llama: Any) -> None:
    trial = gate.Trial(2.0)
    report = StepReport()
    with trial.training():
        config = ExpansionConfig(
            layers=[0, 1], interpolator="study_gate", alpha=0.25, divergence="none"
        )
        model = expand(pico_llama(), config)
        model.set_alpha(0.5)
        losses = []
        for kind in (StepLoss, ready.StepLoss):
            loss = kind(model, Reference(model), 1.0)
            losses.append(loss.micro_batch(PADDED, loss.count([PADDED]), report))
    # Each gate is 0.25 everywhere at the start, and the dial halves it.
    pushed = (losses[1] - losses[0]).item()
    assert pushed == pytest.approx(2.0 * 0.5 * 0.25, rel=1e-5)
    assert report.losses["gate_push"].item() == pytest.approx(pushed, rel=1e-5)
    (losses[1] - losses[0]).backward()
    assert all(block.interpolator.bias.grad > 0 for block in model.blocks.values())


def test_the_factors_of_finch_by_hand() -> None:
    factor = finch.factors(2.5)
    next(factor)
    assert factor.send(4.0) == pytest.approx(1 / 2)
    assert factor.send(9.0) == pytest.approx(1 / math.sqrt(0.9 * 4 + 0.1 * 9))
    low = finch.factors(2.5)
    next(low)
    assert low.send(0.01) == 2.5


def test_finch_sets_the_rate_of_each_step(
    tmp_path: Path, pico_llama: Any, pico_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 60)
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def seen(self: Any, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", seen)
    with finch.Trial().training():
        values = run_values(tmp_path / "run", text)
        result = train(RunConfig.from_dict(values), (pico_llama(), pico_tokenizer))
    losses = [row["train/cross_entropy"] for row in result.history if "train/loss" in row]
    mean, expected = losses[0], []
    for loss in losses:
        mean = 0.9 * mean + 0.1 * loss
        expected.append(1e-2 / math.sqrt(mean))
    assert rates == pytest.approx(expected, rel=1e-5)
    assert rates[-1] > rates[0]
