"""A plain `transformers.Trainer` with DeepSpeed trains an expanded model, and saves its sidecar."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.laws.architectures import VOCAB, make_base
from tests.processes import run_ranks, values

from controlllm import expand, load_sidecar
from controlllm.common.errors import ModelError
from controlllm.integrations import ControlLLMCallback
from controlllm.train.parallel.deepspeed_config import prepare_deepspeed

ROWS, LENGTH, STEPS = 8, 9, 2


def by_trainer(folder: Path, rank: int, stage: int | None) -> dict[str, float]:
    """Two steps on four rows each; DeepSpeed's settings are those of a user's own JSON."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    model = expand(make_base("llama"), num_blocks=2, interpolator="dlerp")
    with torch.no_grad():  # Branches that differ, so that the divergence has a gradient.
        for block in model.blocks.values():
            for parameter in block.expanded.parameters():
                parameter.mul_(1.1)
    processes = 1 if stage is None else 2
    sharing: dict[str, Any] = {}
    if stage is not None:
        prepare_deepspeed(on_cpu=True, local_rank=rank)
        zero = {"stage": stage, "stage3_param_persistence_threshold": 2}
        deepspeed = {"zero_optimization": zero, "train_micro_batch_size_per_gpu": "auto"}
        sharing = {"deepspeed": deepspeed, "accelerator_config": {"use_configured_state": True}}
    ids = torch.randint(3, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(5))
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS // STEPS // processes,
        max_steps=STEPS,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        save_steps=STEPS,
        save_only_model=True,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        **sharing,
    )
    Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()}),
        callbacks=[ControlLLMCallback()],
    ).train()
    return model.divergence


@pytest.mark.parametrize("stage", [2, 3])
def test_a_plain_trainer_with_deepspeed(tmp_path: Path, stage: int) -> None:
    by_trainer(tmp_path / "alone", 0, None)
    found = run_ranks(
        lambda rank: by_trainer(tmp_path / "zero", rank, stage), 2, tmp_path / "processes"
    )
    assert all(min(divergence.values()) > 0 for divergence in values(found))
    sidecar = Path(f"checkpoint-{STEPS}") / "sidecar"
    ours = load_sidecar(make_base("llama"), tmp_path / "alone" / sidecar)
    theirs = load_sidecar(make_base("llama"), tmp_path / "zero" / sidecar)
    before = expand(make_base("llama"), num_blocks=2, interpolator="dlerp")
    start = dict(before.named_parameters())
    moved = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(moved[name], parameter, rtol=1e-4, atol=1e-4, msg=name)
        assert torch.equal(moved[name], start[name]) != parameter.requires_grad


def test_weights_that_zero3_has_cut_are_not_expanded() -> None:
    base = make_base("llama")
    next(base.parameters()).ds_id = 0
    with pytest.raises(ModelError, match="before TrainingArguments"):
        expand(base)
