"""Baselines and adapters by several processes: the same losses and weights as by one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.test_training import losses, require_close, run_of, train_by, train_each
from tests.processes import run_ranks, values

import controlllm.expansion.hub.peft
import controlllm.train.setup.methods  # noqa: F401  # forked processes find them imported
from controlllm.checkpoint import load_checkpoint, load_model, newest_checkpoint
from controlllm.expansion.hub.peft import require_peft
from controlllm.train import train
from controlllm.train.setup.ready import set_up

KL = {"num_sequences": 4, "share": 0.25}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "peft": {"r": 4}, "rehearsal": KL},
    "dora": {"method": "lora", "peft": {"type": "dora", "r": 2}},
    "oft": {"method": "lora", "peft": {"type": "oft", "block_size": 8}},
    "freeze": {"method": "freeze", "freeze": {"also_train": ["norm"]}},
    "kl": {"method": "kl", "kl": {"weight": 1.0}},
    "eaft": {"method": "full", "training": {"loss_type": "eaft"}},
    "on top": {"peft": {"type": "lora", "r": 4}},
}
WAYS = {"ddp": ("lora", "kl", "eaft"), "fsdp": tuple(METHODS)}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process found, by method."""
    return {}


@pytest.mark.parametrize("strategy", WAYS)
def test_two_processes_train_the_same_model(
    run_config: Any, loaded: Any, tmp_path: Path, alone: dict[str, Any], strategy: str
) -> None:
    require_peft()
    methods = WAYS[strategy]
    for name in set(methods) - set(alone):
        run = run_of(run_config, tmp_path / "alone" / name, **METHODS[name])
        history = train_by(run, loaded, 1, tmp_path)[0]
        alone[name] = history, load_checkpoint(newest_checkpoint(tmp_path / "alone" / name))
    parallel = {"strategy": strategy}
    runs = [
        run_of(run_config, tmp_path / name, parallel=parallel, **METHODS[name]) for name in methods
    ]
    found = zip(*train_each(runs, loaded, 2, tmp_path / "processes"), strict=True)
    for name, histories in zip(methods, found, strict=True):
        expected, checkpoint = alone[name]
        for history in histories:
            assert losses(history) == pytest.approx(losses(expected), rel=2e-4), name
        state = load_checkpoint(newest_checkpoint(tmp_path / name))
        assert state.model == checkpoint.model
        require_close(state.tensors, checkpoint.tensors)


@pytest.mark.parametrize("method", ["lora", "freeze", "on top"])
def test_what_two_saved_one_loads_and_goes_on_with(
    run_config: Any, loaded: Any, tmp_path: Path, method: str
) -> None:
    base = str(tmp_path / "base")
    for part in loaded():
        part.save_pretrained(base)
    over = METHODS[method] | {"model": {"model_name_or_path": base}}

    def run(name: str, steps: int) -> Any:
        return run_of(
            run_config, tmp_path / name, training={"max_steps": steps, "save_steps": steps}, **over
        )

    def train_half(rank: int) -> Any:
        result = train(run("two", 3))
        return [row for row in result.history if row["step"] == 3]

    require_peft()
    history = values(run_ranks(train_half, 2, tmp_path / "processes", timeout=100))[0]
    model, _ = load_model(newest_checkpoint(tmp_path / "two"))
    ready = set_up(run("eval", 3))
    ready.loader.close()
    ready.meter.model = model
    measured = ready.meter.measure().metrics
    for name in ("learn/new/loss",):
        assert measured[name] == pytest.approx(history[-1][name], rel=1e-3)
    again = train(run("two", 3), None)  # by one process: there is nothing left to do
    assert again.stopped_because == "max_steps"


def test_in_bfloat16_adapters_stay_in_float32(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    """A unit of FSDP then holds a frozen base in bfloat16 and adapters in float32."""
    require_peft()

    def in_bfloat16() -> Any:
        model, tokenizer = loaded()
        return model.to(torch.bfloat16), tokenizer

    over = {"method": "lora", "training": {"bf16": True}}
    [expected] = train_by(run_of(run_config, tmp_path / "1", **over), in_bfloat16, 1, tmp_path)
    run = run_of(run_config, tmp_path / "2", **over)
    found = train_by(run, in_bfloat16, 2, tmp_path / "processes")[0]
    name = "learn/new/loss"
    a, b = ([row[name] for row in h if name in row] for h in (expected, found))
    assert b == pytest.approx(a, rel=0.05)
    state = load_checkpoint(newest_checkpoint(tmp_path / "2"))
    assert {tensor.dtype for tensor in state.tensors.values()} == {torch.float32}
    assert state.model["base"]["dtype"] == "bfloat16"
