"""`controlllm train`: one run."""

import logging

from controlllm.cli.parsing import given_value, parse_options
from controlllm.train.config import RunConfig
from controlllm.train.presets import preset_values

__all__ = ["run"]


def run(argv: list[str]) -> None:
    """Train as the run file and the overrides say; `train run.yaml` needs no --config."""
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    preset = given_value(argv, "preset")
    # `--preset null` takes back the preset of a run file.
    defaults = preset_values(preset) if preset not in (None, "null") else {}
    options = parse_options(RunConfig, argv, "train", defaults)

    # What was read, left out and cached is told as the run begins.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("controlllm").setLevel(logging.INFO)
    from controlllm.train import train

    result = train(options)
    print(f"{result.output_dir}: stopped because {result.stopped_because}")
