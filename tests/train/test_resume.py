"""A run that was stopped and goes on is the run that never stopped, bit for bit."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tests.train.helpers import losses_of

from controlllm.checkpoint import load_checkpoint, newest_checkpoint
from controlllm.checkpoint.training.manifest import STATE, write_manifest
from controlllm.common.errors import ConfigError
from controlllm.train import train
from controlllm.train.record.recorder import Recorder
from controlllm.train.setup.ready import set_up

RETAIN = {
    "preset": "retain",
    "rehearsal": {"num_sequences": 6, "share": 0.3},
    "data": {"packing_lookahead": 4},
}


def final_state(folder):
    return load_checkpoint(newest_checkpoint(folder))


def assert_same_run(folder, other):
    """Trained tensors, optimizer, loader, random states and history are equal bit for bit."""
    a, b = final_state(folder), final_state(other)
    assert a.step == b.step
    for name, tensor in a.tensors.items():
        assert torch.equal(tensor, b.tensors[name]), name
    assert a.optimizer == b.optimizer
    assert a.optimizer_tensors.keys() == b.optimizer_tensors.keys()
    for name, tensor in a.optimizer_tensors.items():
        assert torch.equal(tensor, b.optimizer_tensors[name]), name
    assert a.loader == b.loader
    assert torch.equal(a.rng[0]["torch"], b.rng[0]["torch"])
    assert torch.equal(a.extra["alphas"]["generator"], b.extra["alphas"]["generator"])
    assert losses_of(a.history) == losses_of(b.history)


def records(folder):
    """The step and kind of every line of metrics.jsonl."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], "train/loss" in row) for row in map(json.loads, lines)]


class Stopped(Exception):
    """The process 'dies' here."""


def stop_after(monkeypatch, step):
    """Let the run die right after the given step was made, before anything is written."""
    after_step = Recorder.after_step

    def dying(self, *args):
        if self.state.step == step:
            raise Stopped
        after_step(self, *args)

    monkeypatch.setattr(Recorder, "after_step", dying)


@pytest.mark.parametrize("over", [RETAIN, {"method": "full", "data": {"packing": False}}])
def test_resumed_equals_straight(run_config, loaded, tmp_path, monkeypatch, over):
    """Stopped before the first checkpoint, between two, and while the second is being made."""
    training = {"output_dir": str(tmp_path / "straight")}
    straight = train(run_config(training=training, **over), loaded())
    for stop in (1, 3, 4):
        training = {"output_dir": str(tmp_path / f"stopped at {stop}")}
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_after(patch, stop)
            train(run_config(training=training, **over), loaded())
        torch.rand(3)  # Whatever the new process did before must not matter.
        resumed = train(run_config(training=training, **over), loaded())
        assert_same_run(straight.output_dir, resumed.output_dir)
        assert losses_of(resumed.history) == losses_of(straight.history), stop
        assert records(resumed.output_dir) == records(straight.output_dir), stop
        assert resumed.best == straight.best


def test_averages_over_a_window_survive_a_resume(run_config, loaded, tmp_path, monkeypatch):
    """The checkpoint falls between two records."""
    over = {"logging": {"logging_steps": 3}}
    straight = train(run_config(training={"output_dir": str(tmp_path / "a")}, **over), loaded())
    training = {"output_dir": str(tmp_path / "b")}
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 2)
        train(run_config(training=training, **over), loaded())
    resumed = train(run_config(training=training, **over), loaded())
    assert losses_of(resumed.history) == losses_of(straight.history)


def test_a_finished_run_is_not_trained_again(run_config, loaded):
    first = train(run_config(), loaded())
    again = train(run_config(), loaded())
    assert again.stopped_because == "max_steps"
    assert again.history == first.history
    assert_same_run(first.output_dir, again.output_dir)


def test_a_broken_newest_checkpoint_is_passed_over(run_config, loaded, tmp_path, monkeypatch):
    straight = train(run_config(training={"output_dir": str(tmp_path / "a")}), loaded())
    training = {"output_dir": str(tmp_path / "b")}
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 5)
        train(run_config(training=training), loaded())
    broken = tmp_path / "b" / "checkpoint-4" / "state.safetensors"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.warns(UserWarning, match="checkpoint-4"):
        resumed = train(run_config(training=training), loaded())
    assert_same_run(straight.output_dir, resumed.output_dir)


def test_another_config_is_not_resumed_by_mistake(run_config, loaded, tmp_path):
    train(run_config(training={"max_steps": 2}), loaded())
    other = {"max_steps": 2, "learning_rate": 0.5}
    with pytest.raises(ConfigError, match=r"training\.learning_rate was 0.02, is 0.5"):
        train(run_config(training=other), loaded())
    named = str(tmp_path / "run" / "checkpoint-2")
    with pytest.warns(UserWarning, match="learning_rate"):
        train(run_config(training=other | {"resume_from_checkpoint": named}), loaded())


def train_until_killed(run, checkpoint, delay):
    """Train in a process of its own; SIGKILL it some time after a checkpoint shows up."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(run,))
    process.start()
    while process.is_alive() and not Path(run.training.output_dir, checkpoint).exists():
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run was over before it could be killed"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_best_checkpoint_of_another_run_is_gone_on_from(run_config, loaded, tmp_path):
    """It is the best of that run; the new one has none of that name to mark."""
    first = train(run_config(training={"output_dir": str(tmp_path / "first")}), loaded())
    best = tmp_path / "first" / f"checkpoint-{first.best.step}"
    training = {
        "output_dir": str(tmp_path / "second"),
        "resume_from_checkpoint": str(best),
        "max_steps": 9,
    }
    with pytest.warns(UserWarning, match="max_steps was 6, is 9"):
        second = train(run_config(training=training), loaded())
    assert second.history[-1]["step"] == 9


def test_another_number_of_rows_a_step_is_told(run_config, loaded, tmp_path):
    """As on another number of processes, where the config is the same."""
    run = run_config(training={"max_tokens": 200})
    ready = set_up(run, loaded())
    assert ready.rows_of_a_step == 4
    ready.loader.close()
    train(run, loaded())
    checkpoint = newest_checkpoint(run.training.output_dir)
    state = json.loads((checkpoint / STATE).read_text())
    state["extra"]["rows"] = 8
    (checkpoint / STATE).write_text(json.dumps(state))
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint)
    with pytest.warns(UserWarning, match=r"A step had 8 rows .* and has 4"):
        train(run_config(), loaded())


def test_sigkill_at_any_moment(run_config, loaded, tmp_path):
    """Real processes are killed, also while they save, and the same call goes on."""
    model, tokenizer = loaded()
    base = tmp_path / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)

    def run(name):
        training = {"output_dir": str(tmp_path / name), "max_steps": 24, "save_steps": 1}
        return run_config(
            model={"model_name_or_path": str(base)},
            training=training | {"eval_steps": 5, "gradient_accumulation_steps": 1},
            **RETAIN,
        )

    straight = train(run("straight"))
    for step, delay in ((1, 0.0), (5, 0.004), (9, 0.011), (14, 0.023)):
        train_until_killed(run("killed"), f"checkpoint-{step}", delay)
    resumed = train(run("killed"))
    assert_same_run(straight.output_dir, resumed.output_dir)
    assert records(resumed.output_dir) == records(straight.output_dir)
    leftovers = [path.name for path in resumed.output_dir.iterdir() if path.name.startswith(".")]
    assert leftovers == []


REHEARSED = {"rehearsal": {"num_sequences": 8, "share": 0.25}}


@pytest.mark.parametrize(
    "settings", [{"data": {}, **REHEARSED}, {"data": {"packing": False}}], ids=["packed", "padded"]
)
def test_less_memory_after_a_stop_changes_no_result(run_config, loaded, settings):
    """The step is split anew, and activations are computed twice: same rows, same losses."""
    straight = train(run_config(**settings, training={"max_steps": 6}), loaded())
    losses = {r["step"]: r["train/loss"] for r in straight.history if "train/loss" in r}
    shutil.rmtree(straight.output_dir / "checkpoint-6")
    shutil.rmtree(straight.output_dir / "checkpoint-4")
    smaller = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": True,
        "loss_chunk_size": 16,
    }
    workers = {**settings["data"], "num_workers": 1}
    again = train(run_config(**settings | {"data": workers}, training=smaller), loaded())
    after = {r["step"]: r["train/loss"] for r in again.history if "train/loss" in r}
    assert after == pytest.approx(losses, abs=1e-5)
