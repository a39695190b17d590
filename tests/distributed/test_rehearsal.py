"""Rehearsal by several processes: one writes what each rehearses, in batches of its own."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.test_training import losses, require_close, run_of, train_by
from tests.processes import Outcome, run_ranks, values
from tests.train.conftest import NEW

from controlllm.checkpoint import load_checkpoint, newest_checkpoint
from controlllm.common import distributed
from controlllm.data import REHEARSAL
from controlllm.evaluate.own_text import cache
from controlllm.train.parallel import open_world
from controlllm.train.setup.ready import set_up

WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fsdp": ("fsdp", "control", {}),
    "fsdp, full, in chunks": ("fsdp", "full", {"loss_chunk_size": 5}),
    "zero3": ("zero3", "control", {"backend": "hf"}),
}


@pytest.mark.parametrize(("strategy", "method", "over"), WAYS.values(), ids=WAYS)
def test_processes_need_not_rehearse_in_the_same_micro_batches(
    run_config: Any, loaded: Any, tmp_path: Path, strategy: str, method: str, over: dict[str, Any]
) -> None:
    """Where weights are cut, the base computes on all processes or on none."""
    path = tmp_path / "rows.jsonl"
    rows = [{"text": (NEW + NEW)[start : start + (6, 28)[start % 2]]} for start in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": [{"path": str(path)}], "packing": False}
    rehearsal = {"num_sequences": 4, "share": 0.5, "length": 16, "cache_dir": str(tmp_path / "r")}

    def run(name: str, parallel: dict[str, Any], **more: Any) -> Any:
        # Adam makes a step of what is rounding alone: KL's gradient at the start, of full tuning.
        settings = {"method": method, "data": data, "rehearsal": rehearsal, "parallel": parallel}
        training = {"adam_epsilon": 1e-4, **more}
        return run_of(run_config, tmp_path / name, training=training, **settings)

    loader = set_up(run("alone", {}), loaded()).loader
    rehearses = [bool((next(loader)["origin"] == REHEARSAL).any()) for _ in range(12)]
    loader.close()
    assert rehearses[::2] != rehearses[1::2]
    [expected] = train_by(run("alone", {}), loaded, 1, tmp_path)
    two = run("two", {"strategy": strategy, "timeout": 20}, **over)
    for found in train_by(two, loaded, 2, tmp_path / "processes"):
        assert losses(found) == pytest.approx(losses(expected), rel=2e-4)
    state, alone = (load_checkpoint(newest_checkpoint(tmp_path / n)) for n in ("two", "alone"))
    require_close(state.tensors, alone.tensors)


def test_a_run_keeps_its_sequences_on_more_processes(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    """Two processes read twice as many in as many steps; the run goes on with those it has."""
    training = {"max_steps": 4, "save_steps": 100, "total_train_batch_size": None}
    rehearsal = {"num_sequences": 1, "max_epochs": 1.0, "share": 0.5}

    def numbers(ranks: int, **until: Any) -> list[int]:
        run = run_of(run_config, tmp_path / "run", training=training | until, rehearsal=rehearsal)
        train_by(run, loaded, ranks, tmp_path / "processes")
        saved = load_checkpoint(newest_checkpoint(tmp_path / "run"))
        return [saved.step, saved.extra["rehearsed"]]

    step, rehearsed = numbers(1, max_tokens=50)
    assert step == 2 and rehearsed > 1
    assert numbers(2) == [4, rehearsed]


def write_by_two(run: Any, loaded: Any, folder: Path) -> list[Outcome]:
    def prepare(rank: int) -> int:
        with open_world(run.parallel, "cpu") as world:
            loader = set_up(run, loaded(), world).loader
            loader.close()
            return len(loader.feeds[-1].chunks)

    return run_ranks(prepare, 2, folder)


def test_others_wait_for_the_writer_as_long_as_it_lives(
    run_config: Any, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than `parallel.timeout`; but where it has died, they end at once."""
    parallel = {"strategy": "fsdp", "timeout": 4}
    over = {"rehearsal": {"num_sequences": 4}, "parallel": parallel}
    monkeypatch.setattr(distributed, "SLACK_SECONDS", 0.0)
    write = cache.sample_sequences

    def slow(*args: Any) -> Any:
        time.sleep(7)
        return write(*args)

    monkeypatch.setattr(cache, "sample_sequences", slow)
    run = run_of(run_config, tmp_path / "slow", **over)
    assert values(write_by_two(run, loaded, tmp_path / "slowly")) == [4, 4]
    monkeypatch.setattr(cache, "sample_sequences", lambda *args: os._exit(9))
    run = run_of(run_config, tmp_path / "dies", **over)
    dead, other = write_by_two(run, loaded, tmp_path / "dying")
    assert dead == Outcome()
    assert other.error is not None and other.error.startswith("LostRankError")
