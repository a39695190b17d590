"""A small base, small texts and one finished run, made once for all tests of the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlllm.cli import main

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process: `code, stdout, stderr = cli("eval", ...)`."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, pico_llama: Callable[..., Any], pico_tokenizer: Any
) -> Path:
    """A folder with base/, new.txt, old.txt and run.yaml."""
    folder = tmp_path_factory.mktemp("cli")
    pico_llama().save_pretrained(folder / "base")
    pico_tokenizer.save_pretrained(folder / "base")
    (folder / "new.txt").write_text("to be or not to be, that is the question. " * 12)
    (folder / "old.txt").write_text("once upon a time there was a little girl. " * 12)
    settings = {
        "model": {"model_name_or_path": str(folder / "base")},
        "expansion": {"num_blocks": 2},
        "data": {
            "train": [{"path": str(folder / "new.txt")}],
            "learn": [{"path": str(folder / "new.txt")}],
            "retain": [{"path": str(folder / "old.txt")}],
            "max_length": 48,
        },
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": 3,
            "eval_steps": 3,
            "learning_rate": 0.01,
            "per_device_train_batch_size": 2,
        },
        "logging": {"report_to": ["jsonl"]},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="session")
def finished_run(workplace: Path) -> Path:
    """The run of `run.yaml`, trained through the command line."""
    assert main(["train", str(workplace / "run.yaml")]) == 0
    return workplace / "run"


@pytest.fixture(scope="session")
def sidecar(finished_run: Path, workplace: Path) -> Path:
    """The sidecar of that run."""
    assert main(["export", str(finished_run), str(workplace / "side"), "--form", "sidecar"]) == 0
    return workplace / "side"
