"""The whole demo in small: two steps on a few modules of this Python."""

import asyncio
import json
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlllm.checkpoint import load_model
from controlllm.common.errors import ConfigError
from controlllm.demo import DemoConfig, run, story
from controlllm.demo.forms import FORMS
from controlllm.demo.methods import METHODS, run_config
from controlllm.demo.results import ON_OLD, ON_OWN, Results
from controlllm.inference.engine.opening import EngineSpec, open_engine

MODULES = ("ast.py", "base64.py", "contextlib.py", "heapq.py", "shelve.py", "textwrap.py")


@pytest.fixture(scope="module")
def small_library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A few real modules take the place of the whole library."""
    folder = tmp_path_factory.mktemp("library")
    for name in MODULES:
        shutil.copy(Path(sysconfig.get_paths()["stdlib"]) / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(folder)})
        yield


@pytest.fixture(scope="module")
def told(
    small_library: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Results, Path, DemoConfig]:
    config = DemoConfig(
        output_dir=str(tmp_path_factory.mktemp("demo")), max_steps=2, eval_passages=2
    )
    return run(config), Path(config.output_dir), config


def test_the_table_holds_the_base_and_every_method_three_times(told: tuple) -> None:
    results, _, _ = told
    rows = results.rows()
    assert [row.method for row in rows] == [
        "base",
        *(f"{m.title}{how}" for m in METHODS for how in ("", f", {ON_OLD}", f", {ON_OWN}")),
    ]
    base, full, *_ = rows
    for row in rows:
        assert row.forgetting == pytest.approx(row.old_loss - base.old_loss, abs=1e-5)
        assert row.gain == pytest.approx(base.new_loss - row.new_loss, abs=1e-5)
    assert full.kl > 0  # two steps change the model, for better or worse
    assert results.table().count("\n") == len(rows) + 1


def test_nothing_is_chosen_on_what_is_reported(told: tuple) -> None:
    results, folder, config = told
    for domain in ("code", "english"):
        texts = [
            set((folder / "data" / f"{domain}{end}.jsonl").read_text().splitlines())
            for end in ("", "-chooses")
        ]
        assert all(texts) and not texts[0] & texts[1]
    for outcome in results.outcomes:
        for how, curve in outcome.choices.items():
            assert curve.chosen.forgetting <= config.max_forgetting
            assert curve.chosen.retain.keys() == {"english" if how == ON_OLD else "own_text"}
            assert outcome.chosen(how).alpha == curve.chosen.alpha
    written = json.loads((folder / "results.json").read_text())
    assert written["choices"].keys() == written["curves"].keys()


def test_everything_is_on_disk(told: tuple) -> None:
    results, folder, _ = told
    written = json.loads((folder / "results.json").read_text())
    assert [row["method"] for row in written["rows"]] == [row.method for row in results.rows()]
    assert set(written["curves"]) == {method.title for method in METHODS}
    assert written["seconds"] == results.seconds > 0
    assert (folder / "plane.png").read_bytes().startswith(b"\x89PNG")


def test_the_three_forms_load_and_the_exact_ones_agree(told: tuple) -> None:
    results, folder, _ = told
    sidecar, full, collapsed = results.forms
    assert [form.form for form in results.forms] == list(FORMS)
    calibrated = results.rows()[-1]
    for form in (sidecar, full):
        assert form.old_loss == pytest.approx(calibrated.old_loss, abs=1e-5)
        assert form.new_loss == pytest.approx(calibrated.new_loss, abs=1e-5)
    assert sidecar.texts == full.texts
    assert type(load_model(folder / "exports" / "collapsed")[0]).__name__ == "LlamaForCausalLM"
    assert collapsed.megabytes < full.megabytes


def test_it_ends_by_saying_how_to_use_it(told: tuple, capsys: pytest.CaptureFixture) -> None:
    """The commands that are said work on what is said: a model with a dial, and its base."""
    results, folder, _ = told
    story._tell(results, {}, folder)
    commands = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [words[:2] for words in commands] == [["controlllm", "chat"], ["controlllm", "serve"]]
    engine = open_engine("local", EngineSpec(commands[1][2]))
    assert (engine.sidecars, engine.has_dial) == (("tuned",), True)
    asyncio.run(engine.close())


def test_all_methods_train_on_the_same_steps_and_batches(tmp_path: Path) -> None:
    runs = [run_config(method, DemoConfig(str(tmp_path))) for method in METHODS]
    for name in ("max_steps", "per_device_train_batch_size", "seed", "warmup_steps"):
        assert len({getattr(one.training, name) for one in runs}) == 1
    assert all(one.data == runs[0].data for one in runs)
    assert [one.method for one in runs] == ["full", "control", "control"]
    paper, retain = runs[1:]
    assert (paper.expansion.divergence, paper.expansion.alpha) == ("mse", 0.5)
    assert not paper.rehearsal.enabled and paper.training.alpha_sampling is None
    assert retain.expansion.expand_ends and retain.rehearsal.enabled
    assert not any(one.data.replay for one in runs)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        run(DemoConfig(output_dir=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_demo_keeps_what_is_done_and_can_run_again(
    small_library: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(method: object, *_: object) -> None:
        raise KeyboardInterrupt

    real = story.train_and_measure
    config = DemoConfig(output_dir=str(tmp_path), max_steps=1, eval_passages=1)
    monkeypatch.setattr(story, "METHODS", METHODS[:2])
    with monkeypatch.context() as patch:
        patch.setattr(
            story,
            "train_and_measure",
            lambda method, *rest: (real if method.name == "full" else interrupt)(method, *rest),
        )
        with pytest.raises(KeyboardInterrupt):
            run(config)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == [
        "base",
        *(f"full tuning{how}" for how in ("", f", {ON_OLD}", f", {ON_OWN}")),
    ]
    monkeypatch.setattr(story, "METHODS", METHODS[1:2])
    assert run(config).seconds is not None


@pytest.mark.parametrize("wrong", [{"max_steps": 0}, {"max_forgetting": -1.0}])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DemoConfig(**wrong)
