"""One model by one process, or by several in every way: the same losses, the same weights."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.processes import run_ranks, values

from controlllm.checkpoint import TrainingState, load_checkpoint, newest_checkpoint
from controlllm.common.errors import ConfigError
from controlllm.train import train

LANES = {"lanes": 4}
"""Of the data: then one process draws the rows that four would draw."""

WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "hsdp 2x2": (4, {"strategy": "hsdp", "shard_size": 2}),
    "ddp 2": (2, {"strategy": "ddp"}),
    "fsdp 2": (2, {"strategy": "fsdp"}),
    "fsdp 2, tensor 2": (4, {"strategy": "fsdp", "tensor_size": 2}),
    "tensor 2": (2, {"strategy": "fsdp", "tensor_size": 2}),
}


def losses(history: list[dict[str, Any]]) -> list[float]:
    names = ("train/loss", "learn/new/loss", "retain/old/loss", "retain/old/kl", "train/grad_norm")
    names += ("retain/own_text/kl",)
    return [row[name] for row in history for name in names if name in row]


def run_of(run_config: Any, folder: Path, **over: Any) -> Any:
    """Three steps of four rows each and one checkpoint, whatever the number of processes."""
    training = {
        "max_steps": 3,
        "save_steps": 3,
        "output_dir": str(folder),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "total_train_batch_size": 4,
        **over.pop("training", {}),
    }
    data = {**LANES, **over.pop("data", {})}
    return run_config(training=training, data=data, **over)


def train_by(run: Any, loaded: Any, ranks: int, folder: Path) -> list[Any]:
    """Train in so many processes; the history of each."""
    if ranks == 1:
        return [train(run, loaded()).history]
    return [history for [history] in train_each([run], loaded, ranks, folder)]


def train_each(runs: Sequence[Any], loaded: Any, ranks: int, folder: Path) -> list[list[Any]]:
    """Train one run after the other in one group of processes; each one's history of each run."""

    def call(rank: int) -> list[Any]:
        return [train(run, loaded()).history for run in runs]

    return values(run_ranks(call, ranks, folder, timeout=100 + 20 * len(runs)))


def mean_alphas(state: TrainingState) -> dict[str, float]:
    """Of the expanded blocks, as the last evaluation measured them."""
    expansion = state.model["config"].get("expansion") or {}
    return expansion.get("mean_alpha") or {}


def require_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Each tensor as a whole: where a gradient is all but 0, Adam's step hangs on its rounding."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        apart = torch.linalg.vector_norm(found[name].float() - tensor.float())
        assert apart <= 1e-3 * torch.linalg.vector_norm(tensor.float()) + 1e-6, name


METHODS: dict[str, dict[str, Any]] = {
    "concat": {},
    "ends and gates": {"expansion": {"expand_ends": True, "interpolator": "dlerp"}},
    "stack": {"expansion": {"structure": "stack"}},
    "full": {"method": "full"},
    "loss in chunks": {
        "expansion": {"expand_ends": True},
        "training": {"loss_chunk_size": 5, "gradient_checkpointing": True},
    },
}
"""What trains."""
SOME = ("ends and gates", "stack", "full", "loss in chunks")
TRIED: dict[str, tuple[str, ...]] = {
    "hsdp 2x2": ("concat",),
    "ddp 2": ("concat",),
    "fsdp 2": SOME,
    "fsdp 2, tensor 2": ("concat",),
    "tensor 2": ("ends and gates", "full", "loss in chunks"),
}
"""Which methods each way is tried with."""


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process found, by method."""
    return {}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains_the_same_model(
    run_config: Any, loaded: Any, tmp_path: Path, alone: dict[str, Any], way: str
) -> None:
    for name in set(TRIED[way]) - set(alone):
        run = run_of(run_config, tmp_path / "alone" / name, **METHODS[name])
        history = train_by(run, loaded, 1, tmp_path)[0]
        alone[name] = history, load_checkpoint(newest_checkpoint(tmp_path / "alone" / name))
    ranks, parallel = WAYS[way]
    runs = [
        run_of(run_config, tmp_path / name, parallel=parallel, **METHODS[name])
        for name in TRIED[way]
    ]
    found = zip(*train_each(runs, loaded, ranks, tmp_path / "processes"), strict=True)
    for name, histories in zip(TRIED[way], found, strict=True):
        expected, checkpoint = alone[name]
        for history in histories:
            assert losses(history) == pytest.approx(losses(expected), rel=2e-4), name
        assert all(losses(history) == losses(histories[0]) for history in histories)
        state = load_checkpoint(newest_checkpoint(tmp_path / name))
        assert mean_alphas(state) == pytest.approx(mean_alphas(checkpoint), rel=1e-4)
        require_close(state.tensors, checkpoint.tensors)


def test_micro_batches_and_processes_cut_a_step_in_any_way(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    """Four rows a step: by one process at once, or in four micro-batches, or two by two."""

    def run(ranks: int, rows: int) -> Any:
        training = {"per_device_train_batch_size": rows}
        return run_of(run_config, tmp_path / f"{ranks}-{rows}", training=training)

    histories = [train(run(1, rows), loaded()).history for rows in (4, 1)]
    runs = [run(2, rows) for rows in (2, 1)]
    histories += train_each(runs, loaded, 2, tmp_path / "processes")[0]
    for history in histories[1:]:
        assert losses(history) == pytest.approx(losses(histories[0]), rel=2e-4)


@pytest.mark.parametrize("method", ["control", "full"])
def test_in_bfloat16_the_trained_weights_stay_in_float32(
    run_config: Any, loaded: Any, tmp_path: Path, method: str
) -> None:
    # A small rate: rounding that differs is not to be what the model learns.
    training = {"bf16": True, "learning_rate": 1e-3}
    run = run_of(run_config, tmp_path / "alone", method=method, training=training)
    [expected] = train_by(run, loaded, 1, tmp_path)
    run = run_of(run_config, tmp_path / "two", method=method, training=training)
    found = train_by(run, loaded, 2, tmp_path / "processes")[0]
    names = ("train/loss", "learn/new/loss", "retain/old/loss")
    a, b = ([row[n] for row in h for n in names if n in row] for h in (expected, found))
    assert b == pytest.approx(a, rel=0.01)
    state = load_checkpoint(newest_checkpoint(tmp_path / "two"))
    assert {tensor.dtype for tensor in state.tensors.values()} == {torch.float32}
    assert {tensor.dtype for tensor in state.optimizer_tensors.values()} == {torch.float32}


@pytest.mark.filterwarnings("error::UserWarning")
def test_sharded_parts_train_without_a_warning(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    runs = [
        run_of(
            run_config,
            tmp_path / interpolator,
            expansion={"interpolator": interpolator},
            training={"max_steps": 1, "warmup_steps": 0, "loss_chunk_size": chunk},
        )
        for interpolator, chunk in (("lerp", None), ("proj", 5))
    ]
    train_each(runs, loaded, 2, tmp_path / "processes")


def test_what_cannot_work_is_refused_on_every_process(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"strategy": "hsdp", "shard_size": 3}, r"does not divide the 2 processes.*\[1, 2\]"),
        ({"cpu_offload": True}, "needs an accelerator"),
        ({"tensor_size": 3}, r"tensor_size=3 does not divide the 2 processes"),
    ]
    runs = [run_of(run_config, tmp_path / "run", parallel=parallel) for parallel, _ in refused]

    def errors(rank: int) -> list[str]:
        found = []
        for run in runs:
            with pytest.raises(ConfigError) as error:
                train(run, loaded())
            found.append(str(error.value))
        return found

    for found in values(run_ranks(errors, 2, tmp_path / "processes")):
        for (_, words), message in zip(refused, found, strict=True):
            assert re.search(words, message)
