"""Runs and words for the tests of settings: nothing is trained, but where a test says so."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from controlllm.cli import main
from controlllm.cli.kit.eval_options import EvalOptions
from controlllm.cli.kit.parsing import parse_options
from controlllm.cli.kit.sets import UNREAD, run_defaults
from controlllm.cli.train import TrainOptions, parse_run
from controlllm.train import RunConfig

__all__ = ["evaluated", "refused", "run_folder", "trained", "yaml_file"]


def yaml_file(path: Path, values: Any) -> str:
    """A YAML file of these values, or of this text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(path)


def run_folder(path: Path, data: dict[str, Any]) -> str:
    """A run folder that holds nothing but its config, as somebody may have written it."""
    values = RunConfig().to_dict()
    values["data"] |= data
    yaml_file(path / "config.yaml", values)
    return str(path)


def trained(*words: object) -> TrainOptions:
    """What `controlllm train` understands."""
    return parse_run(TrainOptions, [str(word) for word in words], "train")


def evaluated(*words: object) -> EvalOptions:
    """What `controlllm eval` understands."""
    argv = [str(word) for word in words]
    return parse_options(EvalOptions, argv, "eval", run_defaults, unread=UNREAD)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line with which a command refuses."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("controlllm: ") and error.count("\n") == 1, error
    return error
