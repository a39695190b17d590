"""Every wall is tried before a program runs, and what gets through is named."""

import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.evaluate.code.programs import Program
from controlllm.evaluate.code.sandbox import Outcome, Reason, run_program
from controlllm.evaluate.code.settings import SandboxSettings
from controlllm.evaluate.code.walled import SandboxError, Walled, attend

__all__ = ["WALLS", "Walls", "check_walls"]

WALLS = {
    "reading files": "files outside of Python's libraries and the program's folder are not read",
    "writing files": "nothing is written outside of the program's folder",
    "network": "no socket of this machine or another is reached",
    "other processes": "other processes are neither seen, signalled nor traced",
    "new processes": "no process is made and no other program started",
    "memory": "more than the allowed memory is not had",
    "disk": "no file is larger than allowed (in a root of its own: all files together)",
    "privileges": "there are none, and none can be had",
    "time": "a program that does not end is ended",
    "output": "of what is printed no more is kept than allowed",
    "verdict": "leaving with code 0 is no pass",
}
"""What each wall means. All of them are needed to run code that a model wrote."""

_HELP = (
    "What helps: Linux 5.13 or later on x86_64 or aarch64 with Landlock switched on (`landlock` "
    "stands in /sys/kernel/security/lsm), or user namespaces (in a container, a seccomp and "
    "AppArmor profile that allows them); another machine; or allow_unsafe_code, which runs the "
    "programs behind the walls that are there."
)
_SECONDS = 1.0
_PROBE_SECONDS = 60.0


@dataclass(frozen=True)
class Walls:
    """What stands between a program and this machine, as tried."""

    built: tuple[str, ...]
    """What the kernel let be built: of namespaces, own root, limits, no privileges, landlock,
    seccomp."""
    refused: Mapping[str, str]
    """What it did not, and why."""
    through: Mapping[str, str]
    """By wall (see `WALLS`), what got through it."""

    @property
    def stand(self) -> bool:
        """Whether nothing got through any wall."""
        return not self.through

    def describe(self) -> str:
        """One line: which walls are missing, and what there are."""
        missing = "; ".join(f"{wall} ({what})" for wall, what in self.through.items())
        refused = "; ".join(f"{name} ({why})" for name, why in self.refused.items())
        return (
            f"missing walls: {missing or 'none'}. Built: {', '.join(self.built) or 'nothing'}"
            + (f"; refused here: {refused}." if refused else ".")
        )

    def require(self) -> None:
        """Raise `ConfigError` with what is missing and what to do, unless all walls stand."""
        if not self.stand:
            raise ConfigError(f"code that a model wrote is not run here: {self.describe()} {_HELP}")


def check_walls(settings: SandboxSettings | None = None) -> Walls:
    """Try every wall with programs that want through; takes about two seconds.

    Raises:
        SandboxError: not even the processes can be started.
        ConfigError: this is no Linux.
    """
    if sys.platform != "linux":
        raise ConfigError(
            f"code that a model wrote runs on Linux only, not on {sys.platform}: the walls are "
            "made of what its kernel has"
        )
    settings = settings or SandboxSettings()
    with _outside() as places:
        probe = places | {"memory": settings.memory, "disk": settings.disk}
        job = {"part": "probe", "probe": probe, "required": []}
        with Walled(job, settings, _PROBE_SECONDS, reports=True) as walled:
            attend((walled,), lambda: walled.ended, _PROBE_SECONDS)
        walled.require_up()
        through = _told(walled, Path(places["folder"]))
    through |= _try_programs(settings)
    built, refused = walled.status["up"], walled.status["failed"]
    return Walls(tuple(built), refused, {wall: through[wall] for wall in WALLS if wall in through})


def _told(walled: Walled, folder: Path) -> dict[str, str]:
    """What the probe got through, by what it says and by what is seen from here."""
    try:
        said: dict[str, str | None] = json.loads(walled.report)
    except ValueError:
        raise SandboxError(f"the walls cannot be tried: {walled.output[-500:]}") from None
    through = {wall: what for wall, what in said.items() if what}
    names = sorted(path.name for path in folder.iterdir())
    if names != ["secret", "socket"]:
        through.setdefault("writing files", f"changed {folder}, which now holds {names}")
    return through


@contextlib.contextmanager
def _outside() -> Iterator[dict[str, Any]]:
    """What the probe is to reach in vain: a file, a folder, and sockets that listen."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="controlllm-")))
        folder.chmod(0o777)
        (folder / "secret").write_text("secret")
        name = f"controlllm-{os.getpid()}-{threading.get_ident()}"
        kinds: list[tuple[str, int, int, Any]] = [
            ("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            ("unix", socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket")),
            ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, "\0" + name),
        ]
        places: dict[str, Any] = {"secret": str(folder / "secret"), "folder": str(folder)}
        for kind, family, how, address in kinds:
            one = stack.enter_context(socket.socket(family, how))
            one.bind(address)
            if how == socket.SOCK_STREAM:
                one.listen()
            internet = family == socket.AF_INET
            places[kind] = one.getsockname()[1] if internet else address.removeprefix("\0")
        yield places | {"parent": os.getpid()}


def _try_programs(settings: SandboxSettings) -> dict[str, str]:
    """Walls that stand on this side: time, output, verdict."""
    small = replace(settings, output=100)

    def outcome(solution: str, seconds: float = _PROBE_SECONDS) -> Outcome:
        return run_program(Program("walls", solution, "", ()), seconds, small)

    through = {}
    endless = outcome(
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile 1: pass", _SECONDS
    )
    if endless.passed or endless.reason != Reason.TIME:
        through["time"] = f"a program without end: {endless.reason}"
    loud = outcome("print('x' * 1000)")
    if len(loud.output) != small.output:
        through["output"] = f"{len(loud.output)} bytes were kept of {small.output}"
    leaving = outcome("import os\nos._exit(0)")
    if leaving.passed:
        through["verdict"] = "a program that leaves with code 0 passes"
    return through
