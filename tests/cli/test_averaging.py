"""`calibrate` of models that are not expanded: their average with their base, within a budget."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.cli.conftest import Cli

from controlllm.checkpoint import load_model
from controlllm.common.adapters import has_adapters, merge_adapters
from controlllm.evaluate import average_weights

SWEEP = ("--alphas", "[0.5, 1.0]", "--refine_steps=0", "--max_forgetting=10")


@pytest.fixture
def tuned(cli: Cli, workplace: Path, tmp_path: Path) -> Any:
    """`tuned(method)`: a finished run."""

    def train(method: str) -> Path:
        values = yaml.safe_load((workplace / "run.yaml").read_text())
        del values["expansion"]
        values |= {"method": method}
        values["training"]["output_dir"] = str(tmp_path / method)
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
        assert cli("train", tmp_path / "run.yaml")[0] == 0
        return tmp_path / method

    return train


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_chosen_average_is_a_plain_model(
    cli: Cli, tuned: Any, workplace: Path, method: str
) -> None:
    run, base = tuned(method), workplace / "base"
    named = ("--reference", base) if method == "full" else ()
    code, out, err = cli("calibrate", run, *named, *SWEEP)
    assert code == 0, err
    curve = json.loads((run / "calibrated" / "calibration.json").read_text())
    weight = curve["chosen"]
    assert curve["dial"] == "weight of the tuned model" and weight in (0.5, 1.0)
    assert f"weight of the tuned model {weight:g} is written to {run / 'calibrated'}" in out
    found, before, after = (load_model(place)[0] for place in (run / "calibrated", base, run))
    merge_adapters(after)
    expected = dict(average_weights(before, after, weight).named_parameters())
    assert not has_adapters(found)
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(parameter, expected[name])


def test_within_no_budget_the_base_is_left(cli: Cli, tuned: Any, workplace: Path) -> None:
    run, base = tuned("full"), workplace / "base"
    words = ("--alphas=[1.0]", "--refine_steps=0", "--max_forgetting=0", "--data.retain=[]")
    own = ("--own_text.num_sequences=8", "--data.max_length=16")
    code, out, err = cli("calibrate", run, "--reference", base, *words, *own)
    assert code == 0, err
    assert "own_text at weight of the tuned model 0: KL <= 0.000 nats per token" in out
    found, before = (load_model(place)[0] for place in (run / "calibrated", base))
    for one, other in zip(found.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_averaged_is_said(
    cli: Cli, tuned: Any, finished_run: Path, workplace: Path
) -> None:
    run, base = tuned("full"), workplace / "base"
    for words, message in (
        ((run,), "is not expanded: its dial is its average with the model that it was trained"),
        ((finished_run, "--reference", base), "the model carries its base"),
        ((run, "--reference", finished_run), "carries a base of its own, so it is none"),
    ):
        code, _, err = cli("calibrate", *words, *SWEEP)
        assert code == 2 and message in err
    assert not (run / "calibrated").exists()
