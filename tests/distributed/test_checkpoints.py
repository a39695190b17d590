"""Checkpoints that several processes write: resumed by any number, exported, never half."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.test_training import losses, run_of, train_by

from controlllm.checkpoint import (
    LoadOptions,
    best_checkpoint,
    inspect_folder,
    load_checkpoint,
    load_model,
    newest_checkpoint,
    trained_tensors,
)
from controlllm.checkpoint.training import shards
from controlllm.checkpoint.training.shards import is_sharded
from controlllm.common.errors import CheckpointError

FSDP, DDP = {"strategy": "fsdp"}, {"strategy": "ddp"}
HSDP = {"strategy": "hsdp", "shard_size": 2}
TENSOR = {"strategy": "fsdp", "tensor_size": 2}
CHAINS: dict[str, list[tuple[int, dict[str, Any]]]] = {
    "4, 2, 1, 4": [(4, FSDP), (2, FSDP), (1, {}), (4, FSDP)],
    "fsdp, hsdp, ddp, one": [(4, FSDP), (4, HSDP), (2, DDP), (1, {})],
    "tensor, one, tensor, fsdp": [(4, TENSOR), (1, {}), (4, TENSOR), (2, FSDP)],
}
SAVED = {"save_steps": 100, "eval_steps": 100, "max_steps": 8}


@pytest.mark.parametrize(
    ("method", "name"), [*(("control", name) for name in CHAINS), ("full", "4, 2, 1, 4")]
)
def test_a_run_goes_on_with_another_number_of_processes(
    run_config: Any, loaded: Any, tmp_path: Path, name: str, method: str
) -> None:
    """Two steps by each, and one checkpoint after them; the losses are those of one process."""
    straight = run_of(run_config, tmp_path / "straight", method=method, training=SAVED)
    [expected] = train_by(straight, loaded, 1, tmp_path)
    folder, history = tmp_path / "run", list[dict[str, Any]]()
    for number, (ranks, parallel) in enumerate(CHAINS[name], start=1):
        # Where it stops is not part of what run it is; the schedule is that of all eight steps.
        until = {"max_tokens": 2 * number * 4 * 32 - 100} if number < 4 else {}
        training = SAVED | until
        run = run_of(run_config, folder, method=method, parallel=parallel, training=training)
        history = train_by(run, loaded, ranks, tmp_path / "processes")[0]
        newest = newest_checkpoint(folder)
        assert newest == folder / f"checkpoint-{2 * number}"
        assert is_sharded(newest) == (ranks > 1)
    assert [row["step"] for row in history if "train/loss" in row] == list(range(1, 9))
    trained = [row for row in history if "train/loss" in row]
    assert losses(trained) == pytest.approx(
        losses([row for row in expected if "train/loss" in row]), rel=2e-4
    )


def test_on_as_many_processes_it_is_the_straight_run_bit_for_bit(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    folders = [tmp_path / "straight", tmp_path / "resumed"]
    for steps in (3, None):
        training = SAVED | ({"max_tokens": steps * 4 * 32 - 100} if steps else {})
        run = run_of(run_config, folders[1], training=training)
        resumed = train_by(run, loaded, 2, tmp_path / "processes")[0]
    run = run_of(run_config, folders[0], training=SAVED)
    straight = train_by(run, loaded, 2, tmp_path / "processes")[0]
    names = ("train/loss", "train/grad_norm")
    trained = [[row[n] for row in h for n in names if n in row] for h in (straight, resumed)]
    assert trained[0] == trained[1]
    a, b = (load_checkpoint(folder / "checkpoint-8") for folder in folders)
    for name, tensor in {**a.tensors, **a.optimizer_tensors}.items():
        assert torch.equal(tensor, {**b.tensors, **b.optimizer_tensors}[name]), name
    assert a.loader == b.loader
    assert len(a.rng) == 2
    for one, other in zip(a.rng, b.rng, strict=True):
        assert torch.equal(one["torch"], other["torch"])


@pytest.mark.parametrize("method", ["control", "full"])
def test_what_several_processes_wrote_is_loaded_and_exported(
    run_config: Any, loaded: Any, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loaded model has the losses that were measured in training."""
    from controlllm.data import eval_batches
    from controlllm.evaluate import evaluate_losses

    base, tokenizer = loaded()
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = {"model_name_or_path": str(tmp_path / "base")}
    run = run_of(run_config, tmp_path / "run", method=method, model=model)
    history = train_by(run, lambda: None, 2, tmp_path / "processes")[0]
    best = best_checkpoint(tmp_path / "run")
    assert best is not None
    assert is_sharded(best)
    monkeypatch.setattr(shards, "AT_ONCE", 10_000)  # Many files, and tensors that are larger.
    trained, tokenizer = load_model(tmp_path / "run", LoadOptions(scratch_dir=str(tmp_path)))
    assert not list(tmp_path.glob("joined-*"))
    saved = load_checkpoint(best).tensors
    assert saved.keys() == trained_tensors(trained).keys()
    for key, tensor in trained_tensors(trained).items():
        assert torch.equal(tensor, saved[key]), key
    with pytest.raises(CheckpointError, match="cannot be joined in /nowhere"):
        load_model(tmp_path / "run", LoadOptions(scratch_dir="/nowhere"))
    measured = [row for row in history if row["step"] == int(best.name.split("-")[1])][-1]
    for group, name in (("learn", "new"), ("retain", "old")):
        [source] = getattr(run.data, group)
        report = evaluate_losses(trained, eval_batches(source, tokenizer, run.data, 8))
        assert report.loss == pytest.approx(measured[f"{group}/{name}/loss"], rel=1e-5)
    inspection = inspect_folder(best)
    trained_parameters = sum(part.trained for part in inspection.parts)
    assert trained_parameters == sum(p.numel() for p in trained.parameters() if p.requires_grad)
