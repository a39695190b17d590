"""`export`: options belong to forms, and the alpha that `calibrate` chose is in what is written."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from controlllm import collapse
from controlllm.checkpoint import FORMS, load_model
from controlllm.cli.export import ExportOptions

Cli = Callable[..., tuple[int, str, str]]


def test_every_option_of_every_form_is_one_of_the_command() -> None:
    known = {one.name: one.default for one in dataclasses.fields(ExportOptions)}
    for name in FORMS.names():
        for one in dataclasses.fields(FORMS.get(name)):
            assert known[one.name] == one.default, f"{name}.{one.name}"


@pytest.mark.parametrize(
    "words, message",
    [
        (("--rank", 8), "rank=8 would not be used: only form=lora reads it"),
        (("--form", "adapter", "--alpha", 0.5), "alpha=0.5 would not be used: what this form"),
        (("--form", "lora", "--rank", 0), "rank=0 is out of range"),
        (("--form", "unroled"), "Did you mean 'unrolled'?"),
    ],
)
def test_what_a_form_does_not_read_is_refused(
    cli: Cli, sidecar: Path, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    code, _, err = cli("export", sidecar, tmp_path / "out", *words)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_the_alpha_that_was_calibrated_is_kept(
    cli: Cli, finished_run: Path, workplace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    words = ("--alphas=[0.9]", "--refine_steps=0", "--max_forgetting=1000")
    assert cli("calibrate", run, *words)[0] == 0
    chosen = json.loads((run / "calibrated" / "calibration.json").read_text())["chosen"]
    assert chosen == 0.9
    code, out, _ = cli("export", run, tmp_path / "plain", "--form", "collapsed")
    assert code == 0
    assert f"{run / 'calibrated'} has it" in out
    assert "folded at alpha 0.5" in out  # as the run was trained
    for form in ("collapsed", "lora"):
        code, out, _ = cli("export", run / "calibrated", tmp_path / form, "--form", form)
        assert code == 0
        assert "alpha 0.9" in out
        card = (tmp_path / form / "README.md").read_text()
        assert "| dial | 0.9 |" in card
        assert "0.9" in card.split("| dial |")[1].split("## ")[0].split("\n", 1)[1]
    model, _ = load_model(run / "calibrated")
    assert model.alphas() == dict.fromkeys(model.blocks, pytest.approx(0.9))
    written = load_model(tmp_path / "collapsed")[0].state_dict()
    for name, tensor in collapse(model).state_dict().items():
        assert torch.equal(written[name], tensor), name


def test_several_sidecars_go_into_one_folder(
    cli: Cli, sidecar: Path, workplace: Path, tmp_path: Path
) -> None:
    named = ("--sidecars.maths", sidecar, "--sidecars.zh", sidecar)
    code, out, err = cli("export", workplace / "base", tmp_path / "all", *named)
    assert code == 0, err
    assert "full form" in out
    code, _, err = cli("export", tmp_path / "all", tmp_path / "turned", "--alpha", 0.5)
    assert code == 2 and "alpha=0.5 does not say which sidecar is meant (maths, zh)" in err
    other = ("--sidecars.base", sidecar, "--sidecars.zh", sidecar)
    code, _, err = cli("export", workplace / "base", tmp_path / "other", *other)
    assert code == 2 and "'base' cannot be a sidecar's name" in err
    model, _ = load_model(tmp_path / "all")
    assert model.sidecars == ("maths", "zh")
    code, out, _ = cli("inspect", tmp_path / "all")
    assert code == 0
    assert "maths: structure: concat" in out and "zh: structure: concat" in out
    card = (tmp_path / "all" / "README.md").read_text()
    assert "set_alpha({name: alpha})" in card and "| zh |" in card
    code, _, err = cli("export", workplace / "base", tmp_path / "x", *named, "--form", "collapsed")
    assert code != 0
    assert "several by name (maths, zh)" in err
    code, _, err = cli("export", workplace / "base", tmp_path / "x", *named, "--alpha", 0.5)
    assert code != 0
    assert "does not say which sidecar is meant" in err
