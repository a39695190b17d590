"""`transformers.Trainer` in several processes trains what one native process trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.test_training import losses, require_close, run_of, train_by
from tests.processes import run_ranks, values

from controlllm.checkpoint import load_checkpoint, newest_checkpoint
from controlllm.train import train
from controlllm.train.loops.hf import ControlLLMTrainer
from controlllm.train.parallel import open_world
from controlllm.train.record.recorder import Recorder
from controlllm.train.setup.ready import set_up

FSDP, DDP = {"strategy": "fsdp"}, {"strategy": "ddp"}
HSDP = {"strategy": "hsdp", "shard_size": 2}
ZERO2, ZERO3 = {"strategy": "zero2"}, {"strategy": "zero3"}

STRUCTURES: dict[str, dict[str, Any]] = {
    "concat": {},
    "stack": {"expansion": {"structure": "stack"}},
    "ends and gates, checkpointed": {
        "expansion": {"expand_ends": True, "interpolator": "dlerp"},
        "training": {"gradient_checkpointing": True},
    },
    "full": {"method": "full"},
}
MATRIX = [
    (2, FSDP, "ends and gates, checkpointed"),
    (2, ZERO2, "concat"),
    *((2, ZERO3, name) for name in STRUCTURES if name != "concat"),
    (2, DDP, "full"),
    (4, HSDP, "concat"),
]
"""Every way, and for ZeRO-3, which knows least of what it cuts, every structure."""
STEPS = {"max_steps": 4, "eval_steps": 4, "save_steps": 4, "learning_rate": 5e-3}


def merged(structure: str, **training: Any) -> dict[str, Any]:
    settings = STRUCTURES[structure]
    return {**settings, "training": {**STEPS, **settings.get("training", {}), **training}}


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What one native process found, by structure."""
    return {}


@pytest.mark.parametrize(
    ("ranks", "parallel", "structure"),
    MATRIX,
    ids=[f"{parallel['strategy']}-{structure}" for _, parallel, structure in MATRIX],
)
def test_four_steps_are_those_of_one_native_process(
    run_config: Any,
    loaded: Any,
    tmp_path: Path,
    expected: dict[str, Any],
    ranks: int,
    parallel: dict[str, Any],
    structure: str,
) -> None:
    if structure not in expected:
        alone = run_of(run_config, tmp_path / "alone", **merged(structure))
        [history] = train_by(alone, loaded, 1, tmp_path)
        expected[structure] = history, load_checkpoint(newest_checkpoint(tmp_path / "alone"))
    history, checkpoint = expected[structure]
    settings = merged(structure, backend="hf")
    run = run_of(run_config, tmp_path / "run", parallel=parallel, **settings)
    for found in train_by(run, loaded, ranks, tmp_path / "processes"):
        assert losses(found) == pytest.approx(losses(history), rel=2e-4)
    saved = load_checkpoint(newest_checkpoint(tmp_path / "run"))
    for place in ("tensors", "optimizer_tensors"):
        require_close(getattr(saved, place), getattr(checkpoint, place))


OFFLOAD = {"cpu_offload": True, "deepspeed": {"zero_force_ds_cpu_optimizer": False}}
"""By torch's Adam; DeepSpeed's own would be compiled first."""
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tensor groups": ({"strategy": "fsdp", "tensor_size": 2}, {}),
    "zero3, base in int8": (ZERO3, {"model": {"quantize_base": "int8"}}),
    "zero3, hpZ": (
        {**ZERO3, "deepspeed": {"zero_optimization": {"zero_hpz_partition_size": 2}}},
        {},
    ),
    "zero2, rehearsal, loss in chunks": (
        ZERO2,
        {
            "rehearsal": {"num_sequences": 4, "share": 0.5, "length": 16},
            "training": {"loss_chunk_size": 5},
        },
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_change_nothing(run_config: Any, loaded: Any, tmp_path: Path, name: str) -> None:
    parallel, settings = OPTIONS[name]
    training = settings.get("training", {})
    settings = {**settings, "training": training}
    [history] = train_by(run_of(run_config, tmp_path / "alone", **settings), loaded, 1, tmp_path)
    settings["training"] = {**training, "backend": "hf"}
    run = run_of(run_config, tmp_path / "run", parallel=parallel, **settings)
    found = train_by(run, loaded, 2, tmp_path / "processes")[0]
    assert losses(found) == pytest.approx(losses(history), rel=2e-4)


def test_what_deepspeed_refuses_is_told_in_a_sentence(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    parallel = {**ZERO2, "deepspeed": {"prescale_gradients": True}}
    run = run_of(run_config, tmp_path / "run", parallel=parallel, training={"backend": "hf"})
    for outcome in run_ranks(lambda rank: train(run, loaded()), 2, tmp_path / "processes"):
        assert outcome.error is not None and outcome.error.startswith("ConfigError: DeepSpeed")
        assert "pre-scale gradients" in outcome.error and "parallel.deepspeed" in outcome.error


@pytest.mark.parametrize("parallel", [FSDP, ZERO3], ids=["fsdp", "zero3"])
def test_in_bfloat16_what_trains_is_kept_in_float32(
    run_config: Any, loaded: Any, tmp_path: Path, parallel: dict[str, Any]
) -> None:
    training = {"bf16": True, "learning_rate": 1e-3}
    [history] = train_by(
        run_of(run_config, tmp_path / "alone", training=training), loaded, 1, tmp_path
    )
    run = run_of(
        run_config, tmp_path / "run", parallel=parallel, training=training | {"backend": "hf"}
    )
    found = train_by(run, loaded, 2, tmp_path / "processes")[0]
    names = ("train/loss", "learn/new/loss", "retain/old/loss")
    a, b = ([row[n] for row in h for n in names if n in row] for h in (history, found))
    assert b == pytest.approx(a, rel=0.01)
    state = load_checkpoint(newest_checkpoint(tmp_path / "run"))
    for tensors in (state.tensors, state.optimizer_tensors):
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    # They are more than their bfloat16 copies.
    assert any(not torch.equal(t, t.bfloat16().float()) for t in state.tensors.values())


CHAINS = {
    "native, zero3, native, zero2": [
        (2, "native", FSDP),
        (2, "hf", ZERO3),
        (1, "native", {}),
        (2, "hf", ZERO2),
    ],
    "offloaded zero2, offloaded zero3, fsdp, one": [
        (2, "hf", {**ZERO2, **OFFLOAD}),
        (2, "hf", {**ZERO3, **OFFLOAD}),
        (2, "hf", FSDP),
        (1, "hf", {}),
    ],
}
SAVED = {"save_steps": 100, "eval_steps": 100, "max_steps": 4}


@pytest.mark.parametrize("name", CHAINS)
def test_checkpoints_of_one_back_end_are_resumed_by_the_other(
    run_config: Any, loaded: Any, tmp_path: Path, name: str
) -> None:
    """A step by each, and one checkpoint after it; the losses are those of one process.

    The bias of a gate is a tensor of one number, which processes cannot share evenly.
    """
    over = {"expansion": {"interpolator": "dlerp"}, "data": {"learn": [], "retain": []}}
    straight = run_of(run_config, tmp_path / "straight", training=SAVED, **over)
    [history] = train_by(straight, loaded, 1, tmp_path)
    for number, (ranks, backend, parallel) in enumerate(CHAINS[name], start=1):
        until = {"max_tokens": number * 4 * 32 - 100} if number < 4 else {}
        training = SAVED | until | {"backend": backend}
        run = run_of(run_config, tmp_path / "run", parallel=parallel, training=training, **over)
        found = train_by(run, loaded, ranks, tmp_path / "processes")[0]
        assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / f"checkpoint-{number}"
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert losses(found) == pytest.approx(losses(history), rel=2e-4)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_each_process_holds_its_part(
    run_config: Any, loaded: Any, tmp_path: Path, strategy: str
) -> None:
    """Moments and float32 weights of what trains, under ZeRO-3 all weights: half of each."""

    def held(rank: int) -> dict[str, int]:
        run = run_of(
            run_config,
            tmp_path / "run",
            training={"backend": "hf", "max_steps": 2},
            parallel={"strategy": strategy, "deepspeed": PARTS},
        )
        with open_world(run.parallel, "cpu") as world:
            ready = set_up(run, loaded(), world)
            whole = {True: 0, False: 0}
            for parameter in ready.model.parameters():
                whole[parameter.requires_grad] += parameter.numel()
            trainer = ControlLLMTrainer(ready, Recorder(ready, None))
            trainer.train()
            ready.loader.close()
            engine = trainer.model_wrapped
            found = {"frozen of all": whole[False], "trained of all": whole[True]}
            for trains, name in ((True, "trained"), (False, "frozen")):
                found[name] = sum(
                    getattr(p, "ds_tensor", p).numel()
                    for p in ready.model.parameters()
                    if p.requires_grad == trains
                )
            state = engine.optimizer.optimizer.state
            found["moments"] = sum(s["exp_avg"].numel() for s in state.values())
            found["float32"] = sum(part.numel() for part in state)
            return found

    for found in values(run_ranks(held, 2, tmp_path / "processes", timeout=100)):
        trained, frozen = found["trained of all"], found["frozen of all"]
        parts = 2 if strategy == "zero3" else 1
        for name, whole, cut in (
            ("moments", trained, 2),
            ("float32", trained, 2),
            ("trained", trained, parts),
            ("frozen", frozen, parts),
        ):
            # Up to what is added to make parts of one size.
            assert whole / cut <= found[name] < whole / cut * 1.02 + 64, name


PARTS = {"zero_optimization": {"stage3_param_persistence_threshold": 2}}
"""Small parameters, too, are cut."""
