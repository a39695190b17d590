"""Many programs at once: their order, their time, and when none of them runs."""

import logging
import sys
import threading
import time
from dataclasses import replace

import pytest

from controlllm.common.errors import ConfigError
from controlllm.evaluate.code import (
    CodeRunner,
    Program,
    SandboxError,
    SandboxSettings,
    code_runner,
    run_program,
    run_programs,
)

RIGHT = Program("one", "def f(x):\n    return x + 1", "assert f(1) == 2", ("f",))
SLOW = "import time\ndef f(x):\n    time.sleep({})\n    return x + 1"


@pytest.fixture
def runner(walls) -> CodeRunner:
    return CodeRunner(walls, SandboxSettings(seconds=60, jobs=3))


def test_outcomes_come_in_the_order_of_the_programs(runner):
    answers = [2, 3, 2, 2, 0, 2, 5]
    programs = [replace(RIGHT, solution=f"def f(x):\n    return {n}") for n in answers]
    assert [one.passed for one in runner(programs)] == [n == 2 for n in answers]
    assert runner([]) == []


def test_time_is_scaled_to_the_reference(walls):
    bounds = SandboxSettings(seconds=0.3, factor=20, jobs=2)
    program = replace(RIGHT, solution=SLOW.format(1), reference=SLOW.format(1))
    quick = replace(RIGHT, task_id="two", solution=SLOW.format(100), reference=RIGHT.solution)
    unknown = replace(RIGHT, task_id="three", solution=SLOW.format(1))
    outcomes = run_programs([program, quick, unknown], bounds, walls.built)
    reasons = [one.reason for one in outcomes]
    assert reasons == ["passed", "time ran out", "time ran out"]


def test_equal_programs_and_references_run_once(walls, runner, monkeypatch):
    ran, lock = [], threading.Lock()

    def noting(program, *rest):
        with lock:
            ran.append(program.solution)
        return run_program(program, *rest)

    monkeypatch.setattr("controlllm.evaluate.code.runner.run_program", noting)
    reference = RIGHT.solution + "  # the reference"
    programs = [replace(RIGHT, reference=reference)] * 3
    for _ in range(2):
        assert all(one.passed for one in runner(programs))
    assert ran.count(reference) == 1
    assert ran.count(RIGHT.solution) == 1
    other = replace(programs[0], tests="assert f(2) == 3")
    assert runner([other])[0].passed
    assert ran.count(reference) == 2  # other tests take another time


def test_references_that_fail_are_named(runner, caplog):
    programs = [replace(RIGHT, task_id=f"t{n}", reference=f"f = {n}") for n in range(7)]
    with caplog.at_level(logging.WARNING):
        assert all(one.passed for one in runner(programs))
    assert "the references of 7 of 7 problems do not pass here: t0 (raised an error" in caplog.text
    assert "t5" not in caplog.text


def test_a_wall_that_is_missing_is_no_failure_of_the_program(walls):
    with pytest.raises(SandboxError, match=r"walls that stood before .* moon"):
        run_programs([RIGHT] * 3, SandboxSettings(jobs=2), [*walls.built, "moon"])


def test_no_interpreter_is_no_failure_of_the_program(walls, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(SandboxError, match="no process can be started"):
        run_program(RIGHT, 5, SandboxSettings())


def test_modes(walls, caplog):
    for mode in ("strict", "unsafe"):
        with caplog.at_level(logging.WARNING):
            assert code_runner(mode)([RIGHT])[0].passed
    assert caplog.text == ""  # nothing to warn of: all walls stand
    with pytest.raises(ConfigError, match="'strict' or 'unsafe'"):
        code_runner("maybe")


def test_elsewhere_than_on_linux_nothing_runs(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    for mode in ("strict", "unsafe"):
        with pytest.raises(ConfigError, match="Linux only"):
            code_runner(mode)


@pytest.mark.parametrize(
    "bounds",
    [{"memory": 1}, {"seconds": 0}, {"factor": 0.5}, {"output": 0}, {"disk": 0}, {"jobs": -1},
     {"processes": 0}, {"seconds": float("nan")}, {"seconds": float("inf")}],
)  # fmt: skip
def test_bounds_that_cannot_work(bounds):
    with pytest.raises(ConfigError, match=next(iter(bounds))):
        SandboxSettings(**bounds)


def test_an_error_ends_the_rest(walls, monkeypatch):
    started = []

    def failing(program, *_):
        started.append(program)
        time.sleep(0.01)
        raise SandboxError("no walls")

    monkeypatch.setattr("controlllm.evaluate.code.runner.run_program", failing)
    with pytest.raises(SandboxError):
        run_programs([RIGHT] * 1000, SandboxSettings(jobs=2))
    assert len(started) < 100
