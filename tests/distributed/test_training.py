"""One model by one process, or by several in every way: the same losses, the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.processes import run_ranks, values

from controlllm.checkpoint import load_checkpoint, newest_checkpoint
from controlllm.train import train

LANES = {"lanes": 4}
"""Of the data: then one process draws the rows that four would draw."""

WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "fsdp 2": (2, {"strategy": "fsdp"}),
    "ddp 2": (2, {"strategy": "ddp"}),
    "fsdp 4": (4, {"strategy": "fsdp"}),
    "hsdp 2x2": (4, {"strategy": "hsdp", "shard_size": 2}),
}


def losses(history: list[dict[str, Any]]) -> list[float]:
    names = ("train/loss", "learn/new/loss", "retain/old/loss", "retain/old/kl", "train/grad_norm")
    return [row[name] for row in history for name in names if name in row]


def run_of(run_config: Any, folder: Path, **over: Any) -> Any:
    """Six steps of four rows each, whatever the number of processes."""
    training = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "total_train_batch_size": 4,
        **over.pop("training", {}),
    }
    return run_config(training=training, data=LANES, **over)


def train_by(run: Any, loaded: Any, ranks: int, folder: Path) -> list[Any]:
    """Train in so many processes; the history of each."""
    if ranks == 1:
        return [train(run, loaded()).history]
    return values(run_ranks(lambda rank: train(run, loaded()).history, ranks, folder, timeout=100))


@pytest.fixture(params=["concat", "ends and gates", "stack", "full", "loss in chunks"])
def method(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What trains."""
    return {
        "concat": {},
        "ends and gates": {"expansion": {"expand_ends": True, "interpolator": "dlerp"}},
        "stack": {"expansion": {"structure": "stack"}},
        "full": {"method": "full"},
        "loss in chunks": {
            "expansion": {"expand_ends": True},
            "training": {"loss_chunk_size": 5, "gradient_checkpointing": True},
        },
    }[request.param]


def test_every_way_trains_the_same_model(
    run_config: Any, loaded: Any, tmp_path: Path, method: dict[str, Any]
) -> None:
    alone = run_of(run_config, tmp_path / "alone", **method)
    [expected] = train_by(alone, loaded, 1, tmp_path)
    weights = load_checkpoint(newest_checkpoint(tmp_path / "alone")).tensors
    for name, (ranks, parallel) in WAYS.items():
        folder = tmp_path / name
        run = run_of(run_config, folder, parallel=parallel, **method)
        histories = train_by(run, loaded, ranks, tmp_path / "processes")
        for history in histories:
            assert losses(history) == pytest.approx(losses(expected), rel=2e-4), name
        assert all(losses(history) == losses(histories[0]) for history in histories)
        found = load_checkpoint(newest_checkpoint(folder)).tensors
        assert found.keys() == weights.keys()
        for tensor_name, tensor in weights.items():
            torch.testing.assert_close(found[tensor_name], tensor, rtol=1e-3, atol=1e-4)
