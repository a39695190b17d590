"""Own text is a retain set that is never trained on; a run that goes on measures the same."""

import json

import pytest
import torch
from tests.train.helpers import losses_of

from controlllm.checkpoint import best_checkpoint
from controlllm.common.errors import ConfigError
from controlllm.evaluate import Certificate, OwnTextConfig, RetentionReport
from controlllm.evaluate.own_text import certificates
from controlllm.train import train
from controlllm.train.record.recorder import Recorder
from controlllm.train.setup.own_text import final_certificates
from controlllm.train.setup.ready import set_up

FEW = {"num_sequences": 8}


@pytest.fixture
def own(run_config):
    """`own(**sections)`: a run that names no retain set."""

    def make(own_text=FEW, data=None, **over):
        return run_config(data={"retain": [], **(data or {})}, own_text=own_text, **over)

    return make


def last(history, name):
    return [row[name] for row in history if name in row][-1]


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_it_is_the_retain_set_where_none_is_named(own, loaded, tmp_path, backend):
    result = train(own(training={"backend": backend}), loaded())
    names = ("loss", "base_loss", "forgetting", "kl", "kl_upper")
    first = [row for row in result.history if "retain/own_text/kl" in row]
    assert [row["step"] for row in first] == [0, 3, 6]
    assert first[0]["retain/own_text/kl_upper"] == pytest.approx(0, abs=1e-6)
    assert all(f"retain/own_text/{name}" in first[-1] for name in names)
    found = result.certificates["own_text"]
    assert (found.kl, found.upper) == (
        last(result.history, "retain/own_text/kl"),
        last(result.history, "retain/own_text/kl_upper"),
    )
    assert found.sequences == 8 and 0 < found.kl < found.upper
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["metrics"]["kl_upper"] == result.best.kl_upper > 0
    assert len(list((tmp_path / "run" / "own_text").iterdir())) == 1


@pytest.mark.parametrize(
    ("over", "is_measured"),
    [
        ({}, False),  # The run's own retain set counts.
        ({"own_text": {"measure": True}}, True),
        ({"data": {"retain": []}}, True),
        ({"data": {"retain": []}, "own_text": {"measure": False}}, False),
        ({"data": {"retain": [], "learn": []}}, False),
        ({"data": {"retain": [], "learn": []}, "training": {"max_forgetting": 0.1}}, True),
        ({"data": {"retain": [], "learn": []}, "own_text": {"measure": True}}, True),
    ],
)
def test_when_it_is_measured(run_config, loaded, tmp_path, over, is_measured):
    run = run_config(**over)
    run.own_text.num_sequences = 8
    assert run.own_text.measured_in(run) is is_measured
    ready = set_up(run, loaded())
    named = {"old"} if run.data.retain else set()
    assert ready.meter.retain.keys() == named | ({"own_text"} if is_measured else set())
    assert (tmp_path / "run" / "own_text").is_dir() is is_measured


def test_a_budget_holds_on_it(own, loaded):
    with pytest.raises(ConfigError, match=r"own_text\.measure is false"):
        own({"measure": False}, training={"max_forgetting": 0.1})
    training = {"max_forgetting": 0.0, "stop_on_budget": True, "max_steps": 30, "eval_steps": 2}
    result = train(own(data={"learn": []}, training=training | {"learning_rate": 0.1}), loaded())
    assert result.stopped_because == "max_forgetting"
    assert last(result.history, "retain/own_text/kl") > 0


def test_what_is_measured_is_not_what_is_rehearsed(own, loaded, tmp_path):
    rehearsal = {"num_sequences": 8, "share": 0.25, "batch_size": 64}
    set_up(own(rehearsal=rehearsal), loaded())
    kinds = {}
    for kind in ("rehearsal", "own_text"):
        (file,) = (tmp_path / "run" / kind).iterdir()
        kinds[kind] = json.loads(file.read_text())["sequences"]
    # So small a model says some things twice, but not in the same order.
    pairs = zip(kinds["rehearsal"], kinds["own_text"], strict=True)
    assert sum(one == other for one, other in pairs) <= 1


def test_a_run_that_goes_on_measures_the_same_text(own, loaded, tmp_path, monkeypatch):
    whole = train(own(training={"output_dir": str(tmp_path / "whole")}), loaded())

    def after_step(self, *args):
        original(self, *args)
        if self.state.step == 4:
            raise KeyboardInterrupt

    original = Recorder.after_step
    monkeypatch.setattr(Recorder, "after_step", after_step)
    with pytest.raises(KeyboardInterrupt):
        train(own(), loaded())
    monkeypatch.setattr(Recorder, "after_step", original)
    resumed = train(own(), loaded())
    assert losses_of(resumed.history) == losses_of(whole.history)
    assert resumed.certificates == whole.certificates
    assert resumed.best == whole.best
    assert best_checkpoint(resumed.output_dir).name == best_checkpoint(whole.output_dir).name


def test_full_tuning_is_measured_against_what_it_was(own, loaded):
    result = train(own(method="full", expansion={"num_blocks": None}), loaded())
    assert 0 < result.certificates["own_text"].kl < result.certificates["own_text"].upper


def test_a_wished_precision_writes_more_at_the_end(own, loaded):
    few = train(own(), loaded()).certificates["own_text"]
    settings = {"num_sequences": 8, "precision": few.precision / 2, "max_sequences": 64}
    run = own(settings, training={"overwrite_output_dir": True})
    more = train(run, loaded()).certificates["own_text"]
    assert more.sequences > 8
    assert more.precision <= few.precision / 2 or more.sequences == 64
    assert isinstance(more, Certificate)


def test_of_a_stage_that_is_short_of_the_precision_no_text_is_written_but_it_is_told(
    own, loaded, caplog
):
    ready = set_up(own(own_text={"num_sequences": 8, "precision": 0.01}), loaded())
    exact, vague = (RetentionReport(2.0, 2.1, 0.1, 80, error, 8) for error in (1e-4, 0.1))
    measured = {"own_text": exact, "a/own_text": vague}
    found = final_certificates(ready, measured)
    assert found == certificates(measured)
    assert "own_text.precision=0.01 is not reached on a/own_text" in caplog.text


def test_training_is_the_same_with_and_without_it(own, loaded, tmp_path):
    """It has random numbers of its own."""
    without = own({"measure": False}, training={"output_dir": str(tmp_path / "without")})
    states = [train(run, loaded()).model.state_dict() for run in (own(), without)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_names_that_are_taken(run_config, texts):
    named = [{"path": texts["old_heldout"], "name": "own_text"}]
    with pytest.raises(ConfigError, match="names that begin with 'own_text'"):
        run_config(data={"retain": named})


def test_settings_without_effect_are_told(run_config, loaded):
    with pytest.warns(UserWarning, match=r"own_text\.length=16.*own_text\.measure"):
        train(run_config(own_text={"length": 16}, training={"max_steps": 1}), loaded())
    with pytest.raises(ConfigError, match="num_sequences"):
        OwnTextConfig(num_sequences=2)
