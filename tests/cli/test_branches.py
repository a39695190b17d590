"""A run beside an earlier one, on the command line: trained, measured, calibrated, looked at."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from controlllm.checkpoint import load_model
from controlllm.expansion.files.records import read_sidecar_config


@pytest.fixture
def branch(cli: Any, finished_run: Path, workplace: Path, tmp_path: Path) -> Path:
    """`b`, beside a copy of the finished run, `a`."""
    shutil.copytree(finished_run, tmp_path / "a")
    (tmp_path / "third.txt").write_text("seven times nine is sixty-three, and so on. " * 12)
    code, _, err = cli(
        "train",
        workplace / "run.yaml",
        f"--continue_from={tmp_path / 'a'}",
        "--continue_by=branch",
        f"--training.output_dir={tmp_path / 'b'}",
        f"--data.train=[{{path: {workplace / 'old.txt'}}}]",
        f"--data.learn=[{{path: {tmp_path / 'third.txt'}}}]",
    )
    assert code == 0, err
    return tmp_path / "b"


def test_the_dials_of_all_are_found_and_kept(cli: Any, branch: Path) -> None:
    words = ("--alphas", "[0.5, 1.0]", "--max_forgetting", 10, "--refine_steps", 0)
    code, out, err = cli("calibrate", branch, *words)
    assert code == 0, err
    folder = branch / "calibrated"
    found = json.loads((folder / "calibration.json").read_text())
    assert [*found["chosen"]] == ["a", "b"] and "chosen" in out
    assert "loss of a/new" in out  # What a held out counts as learned, too.
    assert (folder / "calibration.png").stat().st_size > 1000
    model = load_model(folder)[0]
    assert model.sidecars == ("a", "b")  # called as the run
    for name, weight in found["chosen"].items():
        expected = weight if weight is not None else None
        assert model.expansions[name].dial == expected
    values = read_sidecar_config(folder)
    assert "its dial here: " in cli("inspect", folder)[1]
    code, out, err = cli("calibrate", folder, *words[:2], "--max_forgetting", 0, *_sets(branch))
    assert code == 0, err  # in place: nothing may be forgotten
    again = read_sidecar_config(folder)
    assert again["parents"][0]["digest"] == values["parents"][0]["digest"]
    chosen = json.loads((folder / "calibration.json").read_text())["chosen"]
    model = load_model(folder)[0]
    assert {name: one.dial for name, one in model.expansions.items()} == chosen
    off = [name for name, weight in chosen.items() if weight == 0]
    assert (f"Nothing is left of what {', '.join(off)} learned" in out) == bool(off)


def test_what_earlier_stages_held_out_counts_as_learned(
    cli: Any, branch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("calibrate", branch, "--alphas=[1.0]", "--max_forgetting=10", "--refine_steps=0")
    code, out, err = cli(*words)
    assert code == 0, err
    assert all(f"loss of {name} " in out for name in ("third", "a/new"))
    found = json.loads((branch / "calibrated" / "calibration.json").read_text())
    losses = {p["alpha"]["a"]: p["learn"]["a/new"]["loss"] for p in found["points"]}
    assert losses[1.0] < losses[0.0] and found["chosen"]["a"] != 0
    config = branch.parent / "a" / "config.yaml"
    config.write_text(config.read_text().replace("new.txt", "gone.txt"))
    code, out, err = cli(*words, "--overwrite", True)
    assert code == 0, err
    assert "a/new" not in out and "What the stage a held out is not measured" in caplog.text
    assert "gone.txt" in caplog.text
    code, out, err = cli(*words, "--overwrite", True, *_sets(branch))
    assert code == 0 and "third" in out  # What is said counts.


def test_sidecars_of_one_base_are_weighed_and_kept_together(
    cli: Any, sidecar: Path, workplace: Path, tmp_path: Path
) -> None:
    named = (workplace / "base", "--sidecars.maths", sidecar, "--sidecars.zh", sidecar)
    sets = [
        f"--data.{group}=[{{path: {workplace / name}}}]"
        for group, name in (("learn", "new.txt"), ("retain", "old.txt"))
    ]
    words = ("--alphas=[0.5]", "--refine_steps=0", "--data.max_length=48", "--max_forgetting")
    code, _, err = cli("calibrate", *named, *sets, *words, 10)
    assert code == 2 and "--output" in err
    out = tmp_path / "both"
    own = ("--own_text.measure=true", "--own_text.num_sequences=8")
    code, told, err = cli("calibrate", *named, *sets, *own, *words, 10, "--output", out)
    assert code == 0, err
    assert "own_text at weights maths" in told
    chosen = json.loads((out / "calibration.json").read_text())["chosen"]
    assert chosen["maths"] and chosen["zh"] and f"maths {chosen['maths']:g}" in told
    model = load_model(out)[0]
    assert {name: one.dial for name, one in model.expansions.items()} == chosen
    code, told, err = cli("calibrate", out, *sets, *words, 0)
    assert code == 0, err  # in place
    chosen = json.loads((out / "calibration.json").read_text())["chosen"]
    model = load_model(out)[0]
    assert {name: one.dial for name, one in model.expansions.items()} == chosen


def _sets(branch: Path) -> list[str]:
    from controlllm.train.config.config_io import read_yaml

    data = read_yaml(branch / "config.yaml")["data"]
    return [f"--data.{group}=[{{path: {data[group][0]['path']}}}]" for group in ("learn", "retain")]


def test_it_is_evaluated_exported_and_looked_at(cli: Any, branch: Path, tmp_path: Path) -> None:
    assert cli("eval", branch, *_sets(branch))[0] == 0
    code, shown, _ = cli("inspect", branch)
    assert code == 0 and "a stands beside it, frozen and not in the table: at alpha 0 it" in shown
    assert cli("export", branch, tmp_path / "side", "--form", "sidecar")[0] == 0
    assert load_model(tmp_path / "side")[0].sidecars == ("a", "side")
    assert cli("export", branch, tmp_path / "plain", "--form", "collapsed")[0] == 0
    code, _, err = cli("export", branch, tmp_path / "full", "--form", "lora")
    assert code != 0 and "several by name (a, b)" in err
    code, _, err = cli("probe", branch, "--out", tmp_path / "looked")
    assert code != 0 and "several sidecars (a, b)" in err
