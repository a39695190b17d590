"""`--nproc N` of `train` and `eval`: processes on one machine, by torch's elastic agent.

The agent starts them, ends the others when one fails, and passes signals on. Whether to start them
again is decided here: an error in the input or a request to stop would only come again.
"""

import logging
import os
import signal
import sys
import uuid
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from controlllm.cli.kit.terminal import SAVED
from controlllm.common.errors import ConfigError
from controlllm.train.parallel.failures import FAILED, INTERRUPTED, REFUSED
from controlllm.train.parallel.processes import launched
from controlllm.train.record.signals import PREEMPTED, stop_without

__all__ = ["LAUNCHER", "end_with_launcher", "launch", "processes_to_start"]

LAUNCHER = "CONTROLLLM_LAUNCHER"
"""Variable by which the processes know the id of the one that started them."""
_OWN_OPTIONS = ("--nproc", "--max_restarts")
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
_SECONDS_TO_SAVE = 3600
"""After a request to stop; whoever sent it decides how long that may take."""


def processes_to_start(nproc: int | Literal["auto"], device: str) -> int:
    """How many processes to start; 1 = work in this one, 0 = a launcher has started this one.

    Raises:
        ConfigError: several are asked for where a launcher has started this process, or `device`
            names one.
    """
    if launched():
        if nproc not in ("auto", 1):
            raise ConfigError(
                f"--nproc {nproc}: torchrun or srun has started this process already, as one of "
                "several; leave --nproc out."
            )
        return 0
    if nproc == "auto":
        import torch

        return max(torch.cuda.device_count(), 1) if device in ("auto", "cuda") else 1
    if nproc > 1 and ":" in device:
        raise ConfigError(
            f"--nproc {nproc}: the model's device={device!r} is one device; set it to cuda."
        )
    return nproc


def end_with_launcher() -> None:
    """Ask this process to stop once the launcher is gone that has started it, if one has."""
    if LAUNCHER in os.environ:
        stop_without(int(os.environ[LAUNCHER]))


def launch(verb: str, argv: list[str], count: int, max_restarts: int = 0) -> int:
    """Run a verb in so many processes of this machine; the exit code of all of them."""
    # -P here, and in what they start: no file of the working folder is taken for a module.
    words = ["-P", "-m", "controlllm.cli", verb, *_without(argv, _OWN_OPTIONS)]
    os.environ |= {"PYTHONSAFEPATH": "1", LAUNCHER: str(os.getpid())}
    # Small models are slower on many threads, and all processes share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    code = _attempt(words, count)
    for restart in range(1, max_restarts + 1):
        if code != FAILED:
            break
        _say(f"starting the processes again ({restart} of {max_restarts})")
        code = _attempt(words, count)
    return code


def _attempt(words: list[str], count: int) -> int:
    """Start the processes once, and wait for them."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    # Its loggers have levels of their own; they tell in tables what a process told in a line.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with TemporaryDirectory(prefix="controlllm-") as folder:
        try:
            elastic_launch(_settings(count, folder), sys.executable)(*words)
        except ChildFailedError as error:
            return _code_of(error)
        except SignalException as stop:
            # They have saved and ended, but for one that left an error behind.
            failed = any(Path(folder).rglob("error.json"))
            saved = any(Path(folder).rglob(SAVED))
            return REFUSED if failed else _code_after(stop.sigval, saved)
    return 0


def _settings(count: int, folder: str) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    settings: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": count,
        "run_id": uuid.uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "local_addr": "localhost",
        "max_restarts": 0,
        "signals_to_handle": _SIGNALS,
        "logs_specs": DefaultLogsSpecs(log_dir=folder),
        "shutdown_timeout": _SECONDS_TO_SAVE,
    }
    known = {field.name for field in fields(LaunchConfig)}  # Older ones wait 30 s, and say so.
    return LaunchConfig(**{name: value for name, value in settings.items() if name in known})


def _code_of(error: Any) -> int:
    """The exit code of a run, of which processes failed; tells of the first if it was killed."""
    codes = {failure.exitcode for failure in error.failures.values()}
    for code in (REFUSED, PREEMPTED, INTERRUPTED):
        if code in codes:
            return code
    # The launcher itself ends, by SIGTERM, those that are still there after it.
    ended = -signal.SIGTERM
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    rank, first = min(failures, key=lambda item: item[1].exitcode == ended)
    if first.exitcode < 0:
        _say(f"process {rank} was killed by {signal.Signals(-first.exitcode).name}")
    return FAILED


def _code_after(number: signal.Signals, saved: bool) -> int:
    if number == signal.SIGINT and not saved:
        return INTERRUPTED
    asks = (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGUSR1", None))
    return PREEMPTED if number in asks else 128 + number


def _without(argv: list[str], options: tuple[str, ...]) -> list[str]:
    """The words but for some options and their values."""
    kept: list[str] = []
    skip = False
    for word in argv:
        if not skip and word.split("=", 1)[0] not in options:
            kept.append(word)
        skip = not skip and word in options
    return kept


def _say(text: str) -> None:
    print(f"controlllm: {text}", file=sys.stderr, flush=True)
