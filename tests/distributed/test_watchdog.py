"""Two processes, one of which hangs: the watchdogs tell which, and where."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.processes import run_ranks, values

from controlllm.train import train


def hangs(model: Any, until: Path) -> None:
    """Let a block hang in its fifth training pass, until somebody has noticed."""
    passes = [0]

    def wait(module: torch.nn.Module, args: Any) -> None:
        passes[0] += module.training
        if passes[0] == 5:
            deadline = time.monotonic() + 40
            while not until.exists() and time.monotonic() < deadline:
                time.sleep(0.05)

    # It has no copy, with which it would share the hook and count a pass twice.
    model.model.layers[2].register_forward_pre_hook(wait)


@pytest.mark.parametrize("culprit", [0, 1])
def test_the_watchdogs_name_the_rank_that_hangs(
    run_config: Any, loaded: Any, tmp_path: Path, capfd: Any, culprit: int
) -> None:
    run = run_config(
        training={"max_steps": 3, "eval_steps": 100},
        data={"learn": [], "retain": []},
        debug={"watchdog_seconds": 1.0},
    )
    folder = tmp_path / "run" / "watchdog"

    def work(rank: int) -> str:
        model, tokenizer = loaded()
        if rank == culprit:
            hangs(model, folder / "report.txt")
        return train(run, (model, tokenizer)).stopped_because

    assert values(run_ranks(work, 2, tmp_path / "ranks")) == ["max_steps"] * 2
    other = 1 - culprit
    report = (folder / "report.txt").read_text()
    assert report.startswith(f"rank {culprit} hangs in step 3, forward; rank {other} waits for it")
    assert f"rank {other} has not gone on for" in report and "waiting for others in" in report
    assert "in wait" in (folder / f"rank-{culprit}.txt").read_text()  # the stack
    errors = capfd.readouterr().err
    assert f"watchdog: rank {culprit} hangs in step 3, forward" in errors
    assert f"rank {culprit} goes on after" in errors
    assert not list(folder.glob("rank-*.json"))  # taken back


def test_a_rank_that_trains_on_is_not_reported(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    run = run_config(training={"max_steps": 2}, debug={"watchdog_seconds": 60.0})

    def work(rank: int) -> str:
        return train(run, loaded()).stopped_because

    assert values(run_ranks(work, 2, tmp_path / "ranks")) == ["max_steps"] * 2
    assert not (tmp_path / "run" / "watchdog").exists()
