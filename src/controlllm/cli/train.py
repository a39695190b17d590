"""`controlllm train`: one run."""

import logging
from typing import TypeVar

from controlllm.cli.parsing import given_value, parse_options
from controlllm.train.config import RunConfig
from controlllm.train.presets import preset_values

__all__ = ["parse_run", "run"]

Run = TypeVar("Run", bound=RunConfig)


def parse_run(cls: type[Run], argv: list[str], verb: str) -> Run:
    """Parse a run file and the words after it; `run.yaml` in front needs no --config.

    Args:
        cls: `RunConfig`, or a subclass with options of its own.
        argv: the words after the verb.
        verb: the command, for `--help`.

    Raises:
        ConfigError: see `parse_options`.
    """
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    preset = given_value(argv, "preset")
    # `--preset null` takes back the preset of a run file.
    defaults = preset_values(preset) if preset not in (None, "null") else {}
    return parse_options(cls, argv, verb, defaults)


def run(argv: list[str]) -> None:
    """Train as the run file and the overrides say."""
    options = parse_run(RunConfig, argv, "train")
    # What was read, left out and cached is told as the run begins.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("controlllm").setLevel(logging.INFO)
    from controlllm.train import train

    result = train(options)
    print(f"{result.output_dir}: stopped because {result.stopped_because}")
