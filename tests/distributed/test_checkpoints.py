"""Checkpoints that several processes write: resumed by any number, exported, never half."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.test_training import losses, run_of, train_by, train_each

from controlllm.checkpoint import (
    LoadOptions,
    best_checkpoint,
    inspect_folder,
    load_checkpoint,
    load_model,
    load_named,
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
    "control": [(4, FSDP), (4, HSDP), (2, DDP), (1, {}), (4, TENSOR), (2, FSDP)],
    "full": [(2, FSDP), (1, {}), (2, TENSOR), (2, DDP)],
}
"""By method; in any place a tensor is read from what another cut wrote."""
NO_EVALUATION = {"learn": [], "retain": []}
SAVED = {"save_steps": 100, "eval_steps": 100, "max_steps": 4}


@pytest.mark.parametrize("method", CHAINS)
def test_a_run_goes_on_with_another_number_of_processes(
    run_config: Any, loaded: Any, tmp_path: Path, method: str
) -> None:
    """A step by each, and one checkpoint after it; the losses are those of one process."""
    chain = CHAINS[method]
    saved = SAVED | {"max_steps": len(chain)}
    over: dict[str, Any] = {"method": method, "data": NO_EVALUATION}
    straight = run_of(run_config, tmp_path / "straight", training=saved, **over)
    [expected] = train_by(straight, loaded, 1, tmp_path)
    folder, history = tmp_path / "run", list[dict[str, Any]]()
    for number, (ranks, parallel) in enumerate(chain, start=1):
        # Where it stops is not part of what run it is; the schedule is that of all steps.
        until = {"max_tokens": number * 4 * 32 - 100} if number < len(chain) else {}
        run = run_of(run_config, folder, parallel=parallel, training=saved | until, **over)
        history = train_by(run, loaded, ranks, tmp_path / "processes")[0]
        newest = newest_checkpoint(folder)
        assert newest == folder / f"checkpoint-{number}"
        assert is_sharded(newest) == (ranks > 1)
    assert [row["step"] for row in history] == list(range(1, len(chain) + 1))
    assert losses(history) == pytest.approx(losses(expected), rel=2e-4)


def test_on_as_many_processes_it_is_the_straight_run_bit_for_bit(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    folders = [tmp_path / "straight", tmp_path / "resumed"]
    half = SAVED | {"max_tokens": 2 * 4 * 32 - 100}
    run = run_of(run_config, folders[1], training=half, data=NO_EVALUATION)
    train_by(run, loaded, 2, tmp_path / "processes")
    runs = [run_of(run_config, one, training=SAVED, data=NO_EVALUATION) for one in folders]
    straight, resumed = train_each(runs, loaded, 2, tmp_path / "processes")[0]
    assert losses(straight) == losses(resumed)
    a, b = (load_checkpoint(folder / "checkpoint-4") for folder in folders)
    for name, tensor in {**a.tensors, **a.optimizer_tensors}.items():
        assert torch.equal(tensor, {**b.tensors, **b.optimizer_tensors}[name]), name
    assert a.loader == b.loader
    assert len(a.rng) == 2
    for one, other in zip(a.rng, b.rng, strict=True):
        assert torch.equal(one["torch"], other["torch"])


def require_same_among_others(base: str, folder: Path, alone: Any) -> None:
    """The run beside a second sidecar is what it is alone."""
    alone.save_sidecar(folder / "sidecar")
    options = LoadOptions(scratch_dir=str(folder))
    places = {"run": str(folder / "run"), "sidecar": str(folder / "sidecar")}
    named: Any = load_named(base, places, options)[0]
    assert not list(folder.glob("joined-*"))
    ids = torch.tensor([[1, 40, 50, 60, 70, 80]])
    with torch.no_grad():
        named.set_alpha({"run": None})
        torch.testing.assert_close(named(ids).logits, alone(ids).logits, atol=2e-6, rtol=0)
    with pytest.raises(CheckpointError, match="cannot be joined in /nowhere"):
        load_named(base, places, LoadOptions(scratch_dir="/nowhere"))


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
    if method == "control":
        require_same_among_others(str(tmp_path / "base"), tmp_path, trained)
    measured = [row for row in history if row["step"] == int(best.name.split("-")[1])][-1]
    for group, name in (("learn", "new"), ("retain", "old")):
        [source] = getattr(run.data, group)
        report = evaluate_losses(trained, eval_batches(source, tokenizer, run.data, 8))
        assert report.loss == pytest.approx(measured[f"{group}/{name}/loss"], rel=1e-5)
    inspection = inspect_folder(best)
    trained_parameters = sum(part.trained for part in inspection.parts)
    assert trained_parameters == sum(p.numel() for p in trained.parameters() if p.requires_grad)
