"""`controlllm train`: one run, by one process or by several."""

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from controlllm.cli.kit.parsing import parse_options
from controlllm.cli.kit.terminal import be_silent, is_first, note_saved, tell_log
from controlllm.common.errors import ConfigError
from controlllm.common.facts import setting
from controlllm.train.config.run_config import RunConfig, tell_without_effect

__all__ = ["TrainOptions", "parse_run", "run"]

_MOST_PROCESSES = 1024  # Of one machine.
Run = TypeVar("Run", bound=RunConfig)


@dataclass
class TrainOptions(RunConfig):
    """Train by a run file, and go on where an interrupted run stopped.

    Exit codes: 0 the run is done; 75 it was asked to stop (SIGTERM, SIGUSR1, Ctrl-C) and saved, the
    same command goes on; 2 an error that the message explains; 1 a process was lost.
    """

    nproc: int | Literal["auto"] = setting("auto", at_least=1, at_most=_MOST_PROCESSES)
    """Processes to start on this machine; `auto`: one for each GPU that is visible (1 without
    GPUs, or where torchrun or srun started this one); 1: train in this process."""
    max_restarts: int = 0
    """How often the processes are started again after one of them was lost (not after an error in
    the input); for those that --nproc starts."""

    def to_run(self) -> RunConfig:
        """The run without how it is started."""
        return RunConfig(**{field.name: getattr(self, field.name) for field in fields(RunConfig)})


def parse_run(cls: type[Run], argv: list[str], verb: str) -> Run:
    """Parse the words of a verb; a run file in front needs no --config (ConfigError)."""
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]

    def make(values: dict[str, Any]) -> Run:
        run = cls.from_dict(values)
        tell_without_effect(values)
        return run

    return parse_options(cls, argv, verb, make=make)


def run(argv: list[str]) -> None:
    """Train as the run file and the overrides say.

    Raises:
        SystemExit: with another code than 0, where that is no error of this process.
    """
    options = parse_run(TrainOptions, [word for word in argv if word != "--debug"], "train")
    # What was read, left out and cached is told as the run begins.
    tell_log()
    from controlllm.cli.launch import launch, processes_to_start

    count = processes_to_start(options.nproc, options.model.device)
    if count > 1:
        raise SystemExit(launch("train", argv, count, options.max_restarts))
    if options.max_restarts and not count:
        raise ConfigError(
            "max_restarts is for processes that --nproc starts; torchrun has its own."
        )
    _train(options.to_run())


def _train(run: RunConfig) -> None:
    first = is_first()
    if not first:
        be_silent()
    from controlllm.cli.launch import end_with_launcher
    from controlllm.train import train
    from controlllm.train.record.signals import PREEMPTED, ignore_signals

    end_with_launcher()
    result = train(run)
    preempted = result.stopped_because == "preempted"
    if preempted:
        ignore_signals()
    if first:
        for name, certificate in result.certificates.items():
            print(f"{name}: {certificate}")
        print(f"{result.output_dir}: stopped because {result.stopped_because}", flush=True)
    if preempted:
        if first:
            print("Run the same command again to go on from there.", flush=True)
            note_saved()
        raise SystemExit(PREEMPTED)
