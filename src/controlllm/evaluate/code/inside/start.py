"""Three processes: one that obeys the parent, one that reaps, and the one that runs the code.

The first leaves the machine's namespaces and waits: for the program's end, or for the parent's word
to end it. The second is the first process of the new namespace: when it goes, the kernel kills
whatever is left there. The third puts up the walls that hold for itself, says so, and begins.
"""

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from . import judge, landlock, limits, namespaces, seccomp, wire, worker
from .libc import prctl

__all__ = ["main"]

_SUBREAPER = 36
_SIGNALED = 128
_MOST_DESCRIPTORS = 1 << 20


def main(job_file: int, control: int, status: int, read: int, write: int, report: int) -> None:
    """Run one job.

    Args:
        job_file: file descriptor of the job, as JSON.
        control: pipe of the parent: a byte, or its end, ends everything.
        status: pipe to the parent: which walls are up, and how the program ended.
        read: pipe from the other side: answers for the judge, requests for the worker.
        write: pipe to it.
        report: pipe of the judge, or the probe, to the parent; -1 = none.
    """
    try:
        os.lseek(job_file, 0, os.SEEK_SET)
        with os.fdopen(job_file, encoding="utf-8") as file:
            job = json.load(file)
        if job["part"] == "probe":
            from . import probe  # noqa: F401  later its file is out of reach; others need it not
        _supervise(_Job(job, control, status, read, write, report))
    except BaseException:
        _say(status, {"error": traceback.format_exc()[-2000:]})
        os._exit(1)
    os._exit(0)


class _Job:
    """What is to be run, with its pipes, and the walls that are up so far."""

    def __init__(self, job: dict[str, Any], *descriptors: int) -> None:
        self.job = job
        self.control, self.status, *self.channels = descriptors
        self.channels = [one for one in self.channels if one >= 0]
        self.up: list[str] = []
        self.failed: dict[str, str] = {}
        self.box = str(job["folder"])

    def put_up(self, wall: str, build: Callable[[], Any]) -> bool:
        """Put up a wall; one that cannot be is noted."""
        try:
            build()
        except (OSError, ValueError, KeyError) as error:
            self.failed[wall] = str(error)
            return False
        self.up.append(wall)
        return True


def _say(status: int, message: Mapping[str, Any]) -> None:
    """Tell the parent something."""
    os.write(status, json.dumps(message).encode() + b"\n")


def _supervise(task: _Job) -> None:
    """The first process: leaves, waits, and tells how the program ended."""
    job = task.job
    prctl(_SUBREAPER, 1)
    if task.put_up("namespaces", namespaces.enter):
        size = job["limits"]["disk"]
        if task.put_up("own root", lambda: namespaces.new_root(task.box, job["readable"], size)):
            task.box = namespaces.BOX
    limits.die_with_parent()  # only now: a change of user takes it back
    here, theirs = os.pipe()
    reaper = os.fork()
    if reaper == 0:
        os.close(theirs)
        _reap(task, here)
    for descriptor in (here, *task.channels, 0, 1, 2):
        os.close(descriptor)
    code = _wait(reaper, task.control)
    _kill_children()
    _say(task.status, {"exit": code})


def _wait(reaper: int, control: int) -> int:
    """Wait for the second process, and kill it when the parent says so; its exit code."""
    watch = select.poll()
    process = os.pidfd_open(reaper)
    for descriptor in (process, control):
        watch.register(descriptor, select.POLLIN)
    ready = [descriptor for descriptor, _ in watch.poll()]
    if process not in ready:
        os.kill(reaper, signal.SIGKILL)
    _, status = os.waitpid(reaper, 0)  # in its namespace all others are dead by then
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else _SIGNALED - code


def _kill_children() -> None:
    """Kill what outlived the second process, where there is no namespace that does it."""
    while True:
        try:
            with open("/proc/thread-self/children") as file:
                children = [int(word) for word in file.read().split()]
        except OSError:
            return
        if not children:
            return
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _reap(task: _Job, parent: int) -> None:
    """The second process: waits for the program; all others end with it."""
    try:
        limits.die_with_parent()
        gone = select.poll()
        gone.register(parent, select.POLLIN)
        if gone.poll(0):  # its parent ended before it asked
            os._exit(1)
        os.close(task.control)
        program = os.fork()
        if program == 0:
            _run(task)
        for descriptor in (task.status, *task.channels, 0, 1, 2):
            os.close(descriptor)
        child = status = 0
        while child != program:
            child, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        os._exit(min(code, _SIGNALED - 1) if code >= 0 else _SIGNALED - code)
    except BaseException:
        os._exit(1)


def _run(task: _Job) -> None:
    """The third process: puts up its walls and runs the code."""
    job, code = task.job, 1
    try:
        _close_in(task)
        missing = sorted(set(job["required"]) - set(task.up))
        _say(task.status, {"up": task.up, "failed": task.failed, "missing": missing})
        os.close(task.status)
        if not missing:
            _play(task)
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:
                code = 1
        os._exit(code)


def _close_in(task: _Job) -> None:
    """Put up the walls that hold for this process alone."""
    job = task.job
    limits.die_with_parent()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    keep = sorted({0, 1, 2, task.status, *task.channels})
    for low, high in zip(keep, [*keep[1:], _MOST_DESCRIPTORS], strict=True):
        os.closerange(low + 1, high)
    os.chdir(task.box)
    sys.path += job["libraries"]
    os.environ |= {"HOME": task.box, "TMPDIR": task.box}
    bounds = job["limits"]
    own = "namespaces" in task.up
    tasks = bounds["tasks"] + 2 if own else None  # the two processes above count as well
    sizes = bounds["memory"], bounds["cpu"], bounds["disk"], tasks
    task.put_up("limits", lambda: limits.limit(*sizes))
    task.put_up("no privileges", limits.drop_privileges)
    readable = job["readable"]
    task.put_up("landlock", lambda: landlock.restrict(readable, task.box))
    task.put_up("seccomp", seccomp.refuse_calls)


def _play(task: _Job) -> None:
    """The part of this process: solution, tests, or trying the walls."""
    job = task.job
    if job["part"] == "worker":
        read, write = task.channels
        worker.work(job["solution"], wire.Channel(read, write))
        return
    if job["part"] == "judge":
        read, write, report = task.channels
        setup, tests, names, nonce = (job[key] for key in ("setup", "tests", "names", "nonce"))
        channel = wire.Channel(read, write)
        verdict: Mapping[str, Any] = judge.judge(setup, tests, names, nonce, channel)
    else:
        from . import probe

        (report,) = task.channels
        verdict = probe.tries(job["probe"], task.box)
    _say(report, verdict)
