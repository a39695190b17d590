"""A real model learns real rows on two processes, is killed, and goes on."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks import soak
from tests.distributed.test_launching import run_ranks

from controlllm.checkpoint import best_checkpoint, list_checkpoints
from controlllm.checkpoint.training.shards import is_sharded
from controlllm.cli import main

STEPS = 10
QA = {"prompt": "question", "completion": "answer"}


def run_file(folder: Path, shared_data: Path, **over: dict[str, Any]) -> Path:
    """A run's YAML; keyword sections are laid over it."""
    gsm8k = shared_data / "sft" / "gsm8k"
    stories = shared_data / "text" / "tinystories_excerpt" / "tinystories.txt"
    values: dict[str, dict[str, Any]] = {
        "model": {
            "model_name_or_path": str(shared_data / "checkpoints/stories260k-hf"),
            "device": "cpu",
        },
        "expansion": {"num_blocks": 2, "expand_ends": True},
        "data": {
            "train": [{"path": str(gsm8k / "train.jsonl.gz"), "columns": QA, "max_rows": 200}],
            "learn": [
                {"path": str(gsm8k / "test.jsonl"), "name": "gsm8k", "columns": QA, "max_rows": 8}
            ],
            "retain": [
                {
                    "path": str(stories),
                    "name": "stories",
                    "text_unit": "paragraph",
                    "max_rows": 20,
                }
            ],
            "max_length": 256,
        },
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": STEPS,
            "per_device_train_batch_size": 1,
            "total_train_batch_size": 4,
            "learning_rate": 3e-3,
            "eval_steps": 5,
            "save_steps": 2,
            "save_total_limit": None,
        },
        "logging": {"logging_steps": 1, "report_to": ["jsonl"]},
    }
    for section, settings in over.items():
        values.setdefault(section, {}).update(settings)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def kill_ranks_after(path: Path, run: Path, checkpoints: int) -> None:
    """Train by the command in two forked processes, and kill both."""
    ranks = soak.start_ranks(lambda: main(["train", str(path)]), 2, run.parent / "logs")
    wait_for_checkpoints(run, checkpoints)
    for rank in ranks:
        rank.kill()
        rank.join()


def wait_for_checkpoints(run: Path, count: int) -> None:
    end = time.monotonic() + 120
    while len(list_checkpoints(run)) < count:
        assert time.monotonic() < end, "no checkpoint came"
        time.sleep(0.02)


def finish(path: Path) -> None:
    """Train to the end in two forked processes."""
    codes, printed = run_ranks(path, path.parent / "logs")
    assert codes == [0, 0] and "max_steps" in printed[0], printed


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def export(run: Path, folder: Path, form: str) -> None:
    assert main(["export", str(run), str(folder), "--form", form]) == 0


@pytest.mark.timeout(400)
def test_begun_by_deepspeed_killed_finished_by_the_native_loop_and_exported(
    shared_data: Path, tmp_path: Path
) -> None:
    """Killed under ZeRO-3, finished by FSDP2; what is exported is what was measured."""
    run = tmp_path / "run"
    by_zero3 = {"training": {"backend": "hf"}, "parallel": {"strategy": "zero3"}}
    kill_ranks_after(run_file(tmp_path, shared_data, **by_zero3), run, 2)
    saved = [int(folder.name.split("-")[1]) for folder in list_checkpoints(run)]
    path = run_file(tmp_path, shared_data)
    finish(path)
    found = losses(run)
    assert saved[-1] >= 4 and list(found) == list(range(1, STEPS + 1))
    assert found[STEPS] < found[1] - 1

    best = best_checkpoint(run)
    assert best is not None
    assert is_sharded(best)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    step = int(best.name.split("-")[1])
    measured = next(r for r in rows if r["step"] == step and "learn/gsm8k/loss" in r)
    for form in ("sidecar", "full"):
        folder = tmp_path / form
        export(run, folder, form)
        after = evaluated(folder, path, tmp_path)
        for name in ("learn/gsm8k", "retain/stories"):
            assert after[name] == pytest.approx(measured[f"{name}/loss"], rel=1e-5)
    export(run, tmp_path / "collapsed", "collapsed")
    assert evaluated(tmp_path / "collapsed", path, tmp_path)["learn/gsm8k"] > 0


def evaluated(folder: Path, path: Path, tmp_path: Path) -> dict[str, Any]:
    """The losses of what was exported, on the held-out sets of the run."""
    from controlllm.checkpoint import load_model
    from controlllm.data import eval_batches
    from controlllm.evaluate import evaluate_losses
    from controlllm.train import RunConfig

    run = RunConfig.from_yaml(path)
    model, tokenizer = load_model(folder)
    return {
        f"{group}/{source.name}": evaluate_losses(
            model, eval_batches(source, tokenizer, run.data, 8)
        ).loss
        for group in ("learn", "retain")
        for source in getattr(run.data, group)
    }
