"""Callbacks of users see every event of a run, in both back ends, and may end it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback

from controlllm.common.errors import ConfigError
from controlllm.train import Callback, RunState, train


class Watch(Callback):
    """Notes what it is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[Any] = []
        self.stop_at = stop_at

    def begin(self, state: RunState) -> None:
        self.events.append(("begin", state.step))

    def after_step(self, state: RunState) -> None:
        state.log({"mine/step": float(state.step)})
        self.events.append(("step", state.step))
        if state.step == self.stop_at:
            state.stop("early")

    def evaluate(self, state: RunState, metrics: Mapping[str, float]) -> None:
        assert any(name.startswith("learn/") for name in metrics)
        self.events.append(("evaluate", state.step))

    def save(self, state: RunState, folder: Path) -> None:
        assert (folder / "manifest.json").is_file()
        self.events.append(("save", folder.name))

    def end(self, state: RunState) -> None:
        self.events.append(("end", state.step))


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_each_event_comes_in_its_order(run_config: Any, loaded: Any, backend: str) -> None:
    watch = Watch()
    training = {"backend": backend, "max_steps": 4, "eval_steps": 2, "save_steps": 4}
    result = train(run_config(training=training), loaded(), callbacks=[watch])
    assert watch.events[0] == ("begin", 0) and watch.events[-1] == ("end", 4)
    assert [event for event in watch.events if event[0] == "step"] == [
        ("step", step) for step in (1, 2, 3, 4)
    ]
    measured = [step for event, step in watch.events if event == "evaluate"]
    assert measured == [0, 2, 4]
    assert ("save", "checkpoint-4") in watch.events
    assert [row["mine/step"] for row in result.history if "mine/step" in row] == [1, 2, 3, 4]


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_one_that_stops_the_run_leaves_a_checkpoint(
    run_config: Any, loaded: Any, backend: str
) -> None:
    result = train(
        run_config(training={"backend": backend, "max_steps": 6, "save_steps": 6}),
        loaded(),
        callbacks=[Watch(stop_at=2)],
    )
    assert result.stopped_because == "early"
    last = [row for row in result.history if row["step"] == 2]  # It is logged and measured.
    assert any("train/loss" in row for row in last)
    assert any(name.startswith("learn/") for row in last for name in row)
    assert (result.output_dir / "checkpoint-2" / "manifest.json").is_file()


def test_it_goes_on_with_the_run(run_config: Any, loaded: Any) -> None:
    training = {"max_steps": 6, "save_steps": 6}
    train(run_config(training=training), loaded(), callbacks=[Watch(stop_at=2)])
    watch = Watch()
    train(run_config(training=training), loaded(), callbacks=[watch])
    assert watch.events[0] == ("begin", 2) and ("step", 3) in watch.events


def test_an_error_in_one_ends_the_run_and_all_are_told(run_config: Any, loaded: Any) -> None:
    class Fails(Callback):
        def after_step(self, state: RunState) -> None:
            raise KeyError("mine")

    watch = Watch()
    with pytest.raises(KeyError, match="mine"):
        train(run_config(), loaded(), callbacks=[watch, Fails()])
    assert watch.events[-1] == ("end", 1)


def test_all_are_told_of_the_end_even_if_one_fails(run_config: Any, loaded: Any) -> None:
    class FailsLast(Callback):
        def end(self, state: RunState) -> None:
            raise OSError("mine")

    watch = Watch()
    with pytest.raises(OSError, match="mine"):
        train(run_config(), loaded(), callbacks=[watch, FailsLast()])
    assert watch.events[-1][0] == "end"


def test_one_that_stops_as_it_begins_trains_nothing(run_config: Any, loaded: Any) -> None:
    class Never(Callback):
        def begin(self, state: RunState) -> None:
            state.stop("never")

    result = train(run_config(), loaded(), callbacks=[Never()])
    assert result.stopped_because == "never" and result.history[-1]["step"] == 0


@pytest.mark.parametrize("wrong", [Watch, EarlyStoppingCallback(1)], ids=["a class", "the Hub's"])
def test_what_is_no_callback_is_refused_at_once(run_config: Any, loaded: Any, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"callbacks\[0\] is .*controlllm.train.Callback"):
        train(run_config(), loaded(), callbacks=[wrong])
