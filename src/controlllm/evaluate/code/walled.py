"""One process behind the walls, as this process sees it: its pipes, its folder, its end."""

import contextlib
import json
import os
import selectors
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from controlllm.common.errors import ControlLLMError
from controlllm.evaluate.code.settings import SandboxSettings

__all__ = ["SandboxError", "Walled", "attend"]

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from inside.start import main; "
    "del sys.path[0]; main(*map(int, sys.argv[2:]))"
)
_MOST_REPORT = 1 << 16
_SECONDS_TO_START = 120.0
"""A machine may be busy; this is no time of the program."""
_SECONDS_TO_END = 30.0
_MOST_OUTPUT = 64 << 20
_CHUNK = 1 << 16


class SandboxError(ControlLLMError):
    """A program could not be run behind the walls; this says nothing about the program."""


class Walled:
    """A process behind the walls. Used as a context: at its end nothing of it is left.

    Attributes:
        status: what it said about itself: `up`, `failed`, `missing`, `exit`, `error`.
        report: what judge or probe said, as bytes of JSON.
        printed: how many bytes it has printed.
    """

    def __init__(
        self,
        job: Mapping[str, Any],
        settings: SandboxSettings,
        cpu_seconds: float,
        channels: Iterable[int] = (),
        reports: bool = False,
    ) -> None:
        """Start it.

        Args:
            job: what it is to do, for `inside.start`.
            settings: its bounds.
            cpu_seconds: processor time that it may use.
            channels: two pipes to another such process, or none.
            reports: whether it has something to say at the end.

        Raises:
            SandboxError: no process can be started.
        """
        self.status: dict[str, Any] = {}
        self.report, self.printed = b"", 0
        self._said, self._tail, self._keep = b"", bytearray(), settings.output
        limits = {
            "memory": settings.memory,
            "cpu": int(cpu_seconds) + 1,
            "disk": settings.disk,
            "tasks": settings.processes,
        }
        self._ours: list[int] = []
        self._folder = tempfile.mkdtemp(prefix="controlllm-code-")
        paths = {"readable": readable_paths(), "libraries": _site_packages()}
        words = {"folder": self._folder, **paths, "limits": limits, **job}
        try:
            self._start(words, list(channels), reports)
        except (OSError, ValueError) as error:
            for end in self._ours:
                os.close(end)
            _remove(Path(self._folder))
            raise SandboxError(f"no process can be started for a program: {error}") from None

    def _start(self, words: Mapping[str, Any], channels: list[int], reports: bool) -> None:
        with contextlib.ExitStack() as theirs:
            job = theirs.enter_context(tempfile.TemporaryFile("w", encoding="utf-8"))
            json.dump(words, job)
            job.flush()
            ours = self._ours

            def pipe(writes: bool) -> int:
                """A pipe's other end, which is closed here when the process has it."""
                ends = os.pipe()
                ours.append(ends[writes])
                theirs.callback(os.close, ends[not writes])
                return ends[not writes]

            control, status, output = pipe(True), pipe(False), pipe(False)
            report = pipe(False) if reports else -1
            descriptors = [job.fileno(), control, status, *(channels or (-1, -1)), report]
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-s", "-S", "-c", _BOOT, str(Path(__file__).parent)),
                    *map(str, descriptors),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                env=_environment(self._folder),
                pass_fds=[one for one in descriptors if one >= 0],
                start_new_session=True,
            )
        self._control = ours[0]
        takers = [self._take_status, self._take_output, self._take_report]
        self.pipes: dict[int, Callable[[bytes], None]] = dict(zip(ours[1:], takers, strict=False))
        for descriptor in self.pipes:
            os.set_blocking(descriptor, False)

    @property
    def output(self) -> str:
        """The end of what it printed."""
        return self._tail.decode("utf-8", errors="replace")

    @property
    def ended(self) -> bool:
        """Whether its program has ended."""
        return "exit" in self.status or "error" in self.status

    @property
    def talks_too_much(self) -> bool:
        """Whether it printed more than is read."""
        return self.printed > _MOST_OUTPUT

    def require_up(self) -> None:
        """Raise `SandboxError` if it could not start behind all the walls it needs."""
        if missing := self.status.get("missing"):
            failed = self.status["failed"]
            why = "; ".join(f"{wall}: {failed.get(wall, 'not put up')}" for wall in missing)
            raise SandboxError(f"walls that stood before could not be put up again: {why}")
        if "error" in self.status or ("exit" in self.status and "up" not in self.status):
            said = self.status.get("error") or self.output
            raise SandboxError(f"the walls could not be put up: {said[-500:]}")

    def drain(self) -> None:
        """Read what has been written already."""
        for descriptor, take in list(self.pipes.items()):
            with contextlib.suppress(BlockingIOError):
                while part := os.read(descriptor, _CHUNK):
                    take(part)
                    if self.talks_too_much:
                        return

    def _take_status(self, part: bytes) -> None:
        self._said += part
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            self.status |= json.loads(line)

    def _take_output(self, part: bytes) -> None:
        self.printed += len(part)
        self._tail += part
        del self._tail[: -self._keep]

    def _take_report(self, part: bytes) -> None:
        self.report = (self.report + part)[:_MOST_REPORT]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            os.write(self._control, b"x")
        os.close(self._control)
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.drain()
        for descriptor in self.pipes:
            os.close(descriptor)
        _remove(Path(self._folder))


def attend(processes: Iterable[Walled], done: Callable[[], bool], seconds: float | None) -> bool:
    """Read from processes until something is done.

    Args:
        processes: those to listen to.
        done: asked after whatever came.
        seconds: time; None = what a start may take.

    Returns:
        Whether it was done in time.
    """
    until = time.monotonic() + (_SECONDS_TO_START if seconds is None else seconds)
    with selectors.DefaultSelector() as selector:
        for process in processes:
            for descriptor, take in process.pipes.items():
                selector.register(descriptor, selectors.EVENT_READ, take)
        while not done():
            left = until - time.monotonic()
            if left <= 0:
                return False
            for key, _ in selector.select(left):
                part = os.read(key.fd, _CHUNK)
                if part:
                    key.data(part)
                else:
                    selector.unregister(key.fd)
    return True


def readable_paths() -> list[str]:
    """Where Python and the libraries it needs lie; a program may read these and nothing else."""
    own = [str(sysconfig.get_path(k)) for k in ("stdlib", "platstdlib", "purelib", "platlib")]
    for prefix in {sys.prefix, sys.base_prefix} - {"/", "/usr"}:
        own += [f"{prefix}/lib", f"{prefix}/lib64"]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    listed = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    named = [path for path in listed if os.path.isabs(path)]
    found = {os.path.abspath(path) for path in own + system + named if Path(path).exists()}
    below = {path for path in found if any(path.startswith(f"{one}/") for one in found)}
    return sorted(found - below - {"/"})


def _site_packages() -> list[str]:
    """Where installed packages lie; they are found without the start files of `site`."""
    return sorted({str(sysconfig.get_path(key)) for key in ("purelib", "platlib")})


def _environment(folder: str) -> dict[str, str]:
    """All that the process gets of an environment.

    With it, `python -P -s` is what `-I` would be, but for a fixed order of sets of strings, so that
    a program that depends on it gets the same verdict every time.
    """
    own = {"HOME": folder, "TMPDIR": folder, "PATH": os.defpath, "LANG": "C.UTF-8", "TZ": "UTC"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    linker = {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}
    return {"PYTHONHASHSEED": "0", **own, **threads, **linker}


def _remove(folder: Path) -> None:
    """Remove a folder that a stranger filled; links are not followed, locked folders opened."""
    for path, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            if stat.S_ISDIR(os.lstat(path).st_mode):
                os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
