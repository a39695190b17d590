"""A run that goes on from another one, by several processes: as by one."""

from pathlib import Path
from typing import Any

import pytest
from tests.distributed.test_training import require_close, run_of, train_each

import controlllm.train.setup.ways.going  # noqa: F401  # forked processes find it imported
from controlllm.checkpoint import load_checkpoint, newest_checkpoint
from controlllm.train import train

NAMES = (
    *("train/loss", "train/rehearsal", "learn/new/loss", "learn/new/loss_at_a"),
    *("retain/a/new/forgetting", "retain/a/new/loss", "retain/old/kl", "retain/old/loss_at_a"),
)


def numbers(history: list[dict[str, Any]]) -> list[float]:
    return [row[name] for row in history for name in NAMES if name in row]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_go_on_as_one(
    run_config: Any, loaded: Any, tmp_path: Path, strategy: str
) -> None:
    base = str(tmp_path / "base")
    for part in loaded():
        part.save_pretrained(base)
    train(run_of(run_config, tmp_path / "a", model={"model_name_or_path": base}))
    rehearsal = {"num_sequences": 4, "share": 0.25}

    def run(name: str, way: str, **over: Any) -> Any:
        over |= {"continue_from": str(tmp_path / "a"), "continue_by": way}
        folder = tmp_path / f"{name} {way}"
        values = {"expansion": {"num_blocks": None}, "rehearsal": rehearsal}
        return run_of(run_config, folder, **values, **over)

    ways = ("one", "branch", "fold")
    runs = [run("two", way, parallel={"strategy": strategy}) for way in ways]
    found = train_each(runs, lambda: None, 2, tmp_path / "processes")
    for way, histories in zip(ways, zip(*found, strict=True), strict=True):
        alone = train(run("alone", way))
        expected = load_checkpoint(newest_checkpoint(alone.output_dir))
        for history in histories:
            assert numbers(history) == pytest.approx(numbers(alone.history), rel=2e-4, abs=2e-5)
        state = load_checkpoint(newest_checkpoint(tmp_path / f"two {way}"))
        assert state.model == expected.model
        require_close(state.tensors, expected.tensors)
