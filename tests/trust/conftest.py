"""Fixtures of the tests of trust."""

from tests.cli.conftest import cli, finished_run, sidecar, workplace
from tests.train.conftest import loaded, pretrained_pico, run_config, texts

__all__ = [
    "cli",
    "finished_run",
    "loaded",
    "pretrained_pico",
    "run_config",
    "sidecar",
    "texts",
    "workplace",
]
