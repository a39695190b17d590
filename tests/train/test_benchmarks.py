"""A suite of benchmarks in training: curves beside their base, asked once and kept."""

from pathlib import Path
from typing import Any

import pytest

from controlllm.common.errors import ConfigError
from controlllm.evaluate import Evaluation, compare_models
from controlllm.train import Callback, train
from controlllm.train.config.config_io import merge
from controlllm.train.config.parallel_config import ParallelConfig
from controlllm.train.parallel import World
from controlllm.train.setup.benchmarks import load_benchmarks

pytest.importorskip("lm_eval", reason="needs lm-eval (the extra `eval`)")

SUITE = """
about: Choices and texts.
benchmarks:
  - {name: arc, tasks: [arc_easy], kind: choice, shots: 0, prompt: plain, strict: "acc_norm,none",
     chance: 0.25, items: 2376, dataset: allenai/ai2_arc, config: ARC-Easy}
"""


@pytest.fixture
def asking(run_config: Any, tmp_path: Path, shared_data: Path, monkeypatch: Any) -> Any:
    """`asking(**sections)`: a run of 4 steps that asks at 0, 2 and 4."""
    monkeypatch.setenv("CONTROLLLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "few.yaml").write_text(SUITE)
    asked = {"suite": str(tmp_path / "few.yaml"), "data_dir": str(shared_data), "sample": 6}
    values = {
        "training": {"max_steps": 4, "eval_steps": 2, "save_steps": 2},
        "evaluation": asked,
    }
    return lambda **over: run_config(**merge(values, over))


def curve(history: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    begin = "benchmarks/arc/"
    rows = [row for row in history if any(key.startswith(begin) for key in row)]
    found = {row["step"]: {k.removeprefix(begin): v for k, v in row.items()} for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_each_curve_has_its_base(asking: Any, loaded: Any, tmp_path: Path, backend: str) -> None:
    result = train(asking(training={"backend": backend}), loaded())
    found = curve(result.history)
    assert sorted(found) == [0, 2, 4]
    for numbers in found.values():
        assert numbers["rows"] == 6
        assert numbers["base_bits_per_byte"] == found[0]["base_bits_per_byte"]
    assert found[0]["bits_per_byte"] == pytest.approx(found[0]["base_bits_per_byte"], rel=1e-5)
    assert found[4]["bits_per_byte"] != found[4]["base_bits_per_byte"]
    saved = Evaluation.load(result.output_dir / "benchmarks" / "step-4" / "few")
    (change,) = compare_models(saved, "tuned")
    assert change.readings["bits_per_byte"].value == found[4]["bits_per_byte"]
    # The base's answers are kept for every later evaluation, the model's are not.
    assert len([*(tmp_path / "cache" / "answers").iterdir()]) == 1


class StopAt3(Callback):
    def after_step(self, state: Any) -> None:
        if state.step == 3:
            state.stop()


def test_a_resume_continues_the_curve(asking: Any, loaded: Any, tmp_path: Path) -> None:
    straight = train(asking(), loaded())
    again = {"training": {"output_dir": str(tmp_path / "again")}}
    train(asking(**again), loaded(), callbacks=[StopAt3()])
    resumed = curve(train(asking(**again), loaded()).history)
    assert resumed.pop(3)  # A run that ends is measured there.
    assert resumed == curve(straight.history)


def test_other_methods_have_their_base(asking: Any, loaded: Any) -> None:
    over = {"method": "full", "data": {"learn": [], "retain": []}}
    found = curve(train(asking(**over), loaded()).history)
    assert found[4]["base_bits_per_byte"] == found[0]["bits_per_byte"]


def test_what_cannot_be_asked_is_told_at_the_start(
    asking: Any, loaded: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'quick'"):
        train(asking(evaluation={"suite": "quik"}), loaded())
    with pytest.raises(ConfigError, match=r"evaluation\.sample=0"):
        asking(evaluation={"sample": 0})
    with pytest.warns(UserWarning, match=r"evaluation\.suite names no suite"):
        train(asking(evaluation={"suite": None}), loaded())
    code = SUITE.replace("[arc_easy], kind: choice", "[code_humaneval], kind: code")
    code = code.replace('strict: "acc_norm,none",', "").replace("allenai/ai2_arc", "openai/x")
    code = code.replace("dataset: openai/x, config: ARC-Easy", "dataset: openai/openai_humaneval")
    (tmp_path / "code.yaml").write_text(code)
    lacking = SUITE.replace("chance:", "extras: [no-such-package-here], chance:")
    (tmp_path / "lacking.yaml").write_text(lacking)
    with pytest.raises(ConfigError, match=r"name in evaluation\.suite a YAML") as told:
        train(asking(evaluation={"suite": str(tmp_path / "lacking.yaml")}), loaded())
    assert "no-such-package-here" in str(told.value) and "skip_missing" not in str(told.value)
    with pytest.raises(ConfigError, match="has programs to write"):
        train(asking(evaluation={"suite": str(tmp_path / "code.yaml")}), loaded())


def test_a_model_in_parts_is_refused(asking: Any) -> None:
    run = asking(parallel={"strategy": "fsdp"})
    world = World(
        ranks=type("Two", (), {"world_size": 2})(), config=ParallelConfig(), mesh=object()
    )
    with pytest.raises(ConfigError, match="hold the whole model"):
        load_benchmarks(run, world)
