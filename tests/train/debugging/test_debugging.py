"""What `debug` asks for happens, and changes no result."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.helpers import losses_of

from controlllm.common.errors import ConfigError, TrainingError
from controlllm.train import train
from controlllm.train.config.debug_config import DebugConfig
from controlllm.train.observe.debugging import prepare_recorder
from controlllm.train.observe.debugging.debugger import recorder_variables


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_a_profile_holds_the_steps_and_phases_asked_for(
    run_config: Any, loaded: Any, backend: str, tmp_path: Path
) -> None:
    run = run_config(training={"backend": backend, "eval_steps": 100}, data={"retain": []})
    plain = train(run, loaded())
    run.training.output_dir = str(tmp_path / "profiled")
    run.debug = DebugConfig(profile_steps=[2, 3])
    assert losses_of(train(run, loaded()).history) == losses_of(plain.history)
    (trace,) = (tmp_path / "profiled" / "profile").iterdir()
    assert trace.name == "rank-0-steps-2-3.json"
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    forward = names.count("controlllm/forward")
    assert forward == 2 * 2  # steps, micro-batches
    assert "aten::mm" in names


def test_a_profile_is_written_if_the_run_ends_within_it(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    run = run_config(debug={"profile_steps": [6, 9]})
    train(run, loaded())
    assert [p.name for p in (tmp_path / "run" / "profile").iterdir()] == ["rank-0-steps-6-end.json"]


def test_only_ranks_asked_for_are_profiled(run_config: Any, loaded: Any) -> None:
    with pytest.raises(ConfigError, match=r"profile_ranks=\[1\].*1 processes"):
        train(run_config(debug={"profile_steps": [1, 1], "profile_ranks": [1]}), loaded())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_says_so(run_config: Any, loaded: Any) -> None:
    with pytest.raises(ConfigError, match=r"memory_snapshot.*GPU"):
        train(run_config(debug={"memory_snapshot": True}), loaded())
    with pytest.warns(UserWarning, match=r"flight_recorder.*nothing will be recorded"):
        prepare_recorder(DebugConfig(flight_recorder=True), "unused")


@pytest.mark.gpu
def test_a_memory_snapshot_is_written(
    run_config: Any, loaded: Any, tmp_path: Path, gpu: str
) -> None:
    if gpu != "cuda":
        pytest.skip("only CUDA's allocator writes one")
    train(run_config(debug={"memory_snapshot": True, "profile_steps": [2, 3]}), loaded())
    assert (tmp_path / "run" / "profile" / "rank-0-memory.pickle").stat().st_size > 0


def test_the_recorder_writes_into_the_run_folder() -> None:
    variables = recorder_variables(Path("/run/flight_recorder"))
    assert variables["TORCH_FR_DUMP_TEMP_FILE"] == "/run/flight_recorder/rank-"
    assert int(variables["TORCH_FR_BUFFER_SIZE"]) > 0


def broken(model: Any, name: str, backward: bool) -> Any:
    """The model, of which one module breaks in its third training pass."""
    calls = [0]

    def breaks(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        calls[0] += module.training
        if calls[0] != 3 or not module.training:
            return output
        if not backward:
            return output * math.nan
        output.register_hook(lambda gradient: gradient * math.inf)
        return output

    model.get_submodule(name).register_forward_hook(breaks)
    return model


@pytest.mark.parametrize("name", ["model.layers.3.mlp.up_proj", "model.layers.2.self_attn.q_proj"])
def test_the_hunt_names_the_first_module_that_breaks(
    run_config: Any, loaded: Any, name: str
) -> None:
    model, tokenizer = loaded()
    run = run_config(debug={"anomaly": True}, method="full")
    broken(model, name, backward=False)
    with pytest.raises(TrainingError) as error:
        train(run, (model, tokenizer))
    said = str(error.value)
    assert f"output of {name} (Linear)" in said
    assert "step 2, micro-batch 1, on rank 0" in said
    assert "inputs are finite, its weights are finite" in said


def test_the_hunt_names_the_first_gradient_that_breaks(run_config: Any, loaded: Any) -> None:
    model, tokenizer = loaded()
    broken(model, "model.layers.3.mlp", backward=True)
    with pytest.raises(TrainingError) as error:
        train(run_config(debug={"anomaly": True}), (model, tokenizer))
    said = str(error.value)
    assert "gradient of the output of base.model.layers.3.pretrained.mlp" in said
    # The copy has the same hook: its third pass is the frozen block's second.
    assert "step 1, micro-batch 2" in said


def test_the_hunt_names_a_weight_whose_gradient_alone_breaks(run_config: Any, loaded: Any) -> None:
    model, tokenizer = loaded()
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match=r"gradient of the weight model\.layers\.1\.mlp\.up_"):
        train(run_config(debug={"anomaly": True}, method="full"), (model, tokenizer))


def test_the_hunt_changes_no_result(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    settings = {"expansion": {"expand_ends": True}, "training": {"alpha_sampling": [0.0, 1.0]}}
    plain = train(run_config(**settings), loaded())
    run = run_config(**settings, debug={"anomaly": True})
    run.training.output_dir = str(tmp_path / "hunted")
    result = train(run, loaded())
    assert losses_of(result.history) == losses_of(plain.history)
    hooks = [module._forward_hooks for module in result.model.modules()]
    assert sum(len(h) for h in hooks) == sum(
        len(module._forward_hooks) for module in plain.model.modules()
    )


def test_compiled_blocks_cannot_be_hunted_in(run_config: Any, loaded: Any) -> None:
    with pytest.raises(ConfigError, match="torch_compile"):
        run_config(debug={"anomaly": True}, training={"torch_compile": True})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"profile_steps": [3]}, "first, last"),
        ({"profile_steps": [3, 2]}, "first <= last"),
        ({"profile_ranks": []}, "at least one rank"),
        ({"watchdog_seconds": -1.0}, "out of range"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DebugConfig(**settings)


def test_the_watchdog_is_there_where_processes_wait_for_one_another() -> None:
    assert DebugConfig().patience(world_size=1, timeout=600) is None
    assert DebugConfig().patience(world_size=2, timeout=600) == 300
    assert DebugConfig(watchdog_seconds=0).patience(world_size=2, timeout=600) is None
    assert DebugConfig(watchdog_seconds=7).patience(world_size=1, timeout=600) == 7
