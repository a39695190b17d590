"""Runs a program that a model wrote, with tests that it cannot talk to.

Two processes behind walls of their own, joined by two pipes:

* the **worker** holds the solution. It defines it and answers calls.
* the **judge** holds the tests, and a random number (the nonce). It never runs a line of the
  solution: where a test calls it, the arguments go to the worker as plain values, and a plain value
  comes back. When all tests have run, the judge tells the nonce to this process.

What follows, as long as the walls stand: a program passes only if every statement of its tests ran
to the end, on values that the judge holds itself. Leaving (`os._exit(0)`, `sys.exit`), printing a
verdict, replacing builtins, `print` or `assert`, an `__eq__` that is always true, frames, the
garbage collector and open files reach nothing of the judge: the worst that a solution can send is
a wrong answer. What does not follow: that the tests are good, that an answer was computed (a
solution may know the inputs by heart), and that the kernel has no holes.

Arguments go over by value: a test that looks at what a solution did to its arguments sees nothing.
"""

import hmac
import json
import os
import secrets
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from controlllm.evaluate.code.programs import Program
from controlllm.evaluate.code.settings import SandboxSettings
from controlllm.evaluate.code.walled import SandboxError, Walled, attend

__all__ = ["Outcome", "Reason", "run_program"]

_SIGNALED = 128
_SECONDS_TO_LEAVE = 2.0
"""For the end of a worker whose judge has ended; one that stays is killed."""


class Reason(StrEnum):
    """Why a program passed or did not."""

    PASSED = "passed"
    WRONG = "wrong answer"
    RAISED = "raised an error"
    TIME = "time ran out"
    MEMORY = "memory"
    CRASHED = "crashed by signal"
    LEFT = "left without a verdict"
    OUTPUT = "too much output"
    TESTS = "the tests cannot be run here"


@dataclass(frozen=True)
class Outcome:
    """What became of one program. Output and detail are a stranger's text."""

    passed: bool
    reason: str
    """One of `Reason`; after "crashed by signal" comes the signal's name."""
    seconds: float
    """Wall-clock time of solution and tests, without the start of the processes."""
    output: str = ""
    """The end of what the solution printed."""
    detail: str = ""
    """The error, where there is one: type and text, at most 600 characters."""


def run_program(
    program: Program, seconds: float, settings: SandboxSettings, required: Collection[str] = ()
) -> Outcome:
    """Run one program behind the walls.

    Args:
        program: solution and tests.
        seconds: wall-clock time it may take.
        settings: its other bounds.
        required: walls without which it is not to run, by the names of `Walls.built`.

    Raises:
        SandboxError: it could not be run; nothing is known about it.
    """
    nonce = secrets.token_hex(16)
    common = {"required": sorted(required)}
    solution = {"part": "worker", "solution": program.solution, **common}
    tests = {
        "part": "judge",
        "setup": program.setup,
        "tests": program.tests,
        "names": list(program.names),
        "nonce": nonce,
        **common,
    }
    ask, asked = os.pipe(), os.pipe()
    try:
        judge = Walled(tests, settings, seconds, (asked[0], ask[1]), reports=True)
        with judge:
            worker = Walled(solution, settings, seconds, (ask[0], asked[1]))
            with worker:
                for end in (*ask, *asked):
                    os.close(end)
                ask = asked = (-1, -1)
                return _watch(judge, worker, seconds, nonce)
    finally:
        for end in (*ask, *asked):
            if end >= 0:
                os.close(end)


def _watch(judge: Walled, worker: Walled, seconds: float, nonce: str) -> Outcome:
    """Wait for the verdict, or for whatever comes instead."""
    both = (worker, judge)
    started = attend(both, lambda: all("up" in p.status or p.ended for p in both), seconds=None)
    for process in both:
        process.require_up()
    if not started:
        raise SandboxError("a program's process did not start; is the machine overloaded?")
    begin = time.monotonic()

    def done() -> bool:
        told = judge.report.endswith(b"\n") or any(one.ended for one in both)
        return told or any(one.talks_too_much for one in both)

    in_time = attend(both, done, seconds)
    took = time.monotonic() - begin
    if in_time:  # the judge ends first, and then the worker; the news may come in any order
        judge.drain()
        attend((worker,), lambda: worker.ended or worker.talks_too_much, _SECONDS_TO_LEAVE)
    reason, detail = _verdict(judge, nonce)
    if reason in (None, Reason.LEFT):
        reason = _instead(judge, worker, in_time)
    return Outcome(reason == Reason.PASSED, str(reason), took, worker.output, detail)


def _verdict(judge: Walled, nonce: str) -> tuple[str | None, str]:
    """Reason and detail as the judge tells them; None where it has not told them."""
    if not judge.report.endswith(b"\n"):
        return None, ""
    try:
        said: dict[str, Any] = json.loads(judge.report)
        reason, detail = Reason(said["reason"]), str(said["detail"])[:600]
        told = str(said.get("nonce", ""))
    except (ValueError, KeyError, TypeError):
        return Reason.LEFT, ""
    if reason is Reason.PASSED and not hmac.compare_digest(told.encode(), nonce.encode()):
        return Reason.LEFT, ""
    return reason, detail


def _instead(judge: Walled, worker: Walled, in_time: bool) -> str:
    """Why there is no verdict."""
    if not in_time:
        return Reason.TIME
    if judge.talks_too_much or worker.talks_too_much:
        return Reason.OUTPUT
    codes = [one.status.get("exit", 0) for one in (worker, judge)]
    killed = [signal.Signals(code - _SIGNALED) for code in codes if code > _SIGNALED]
    if not killed:
        return Reason.LEFT
    if killed[0] is signal.SIGXCPU:
        return Reason.TIME
    return f"{Reason.CRASHED} {killed[0].name}"
