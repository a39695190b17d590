"""What two processes say of their time, FLOPs and memory: the same, for all of them."""

from pathlib import Path
from typing import Any

import pytest
from tests.processes import run_ranks, values

from controlllm.train import train
from controlllm.train.observe import metrics as names


def test_records_are_of_all_processes(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    run = run_config(training={"max_steps": 4}, logging={"logging_steps": 2})

    def work(rank: int) -> list[dict[str, Any]]:
        return train(run, loaded()).history

    first, second = values(run_ranks(work, 2, tmp_path / "ranks"))
    rows = [row for row in first if names.LOSS in row]
    assert first == second and len(rows) == 2
    tokens = [rows[0][names.TOKENS], rows[1][names.TOKENS] - rows[0][names.TOKENS]]
    for row, seen in zip(rows, tokens, strict=True):
        assert seen / 2 / row[names.TOKENS_PER_SECOND] == pytest.approx(row[names.STEP_SECONDS])
        assert row[names.PHASE_SECONDS.format("communication")] > 0
        assert 0 < row[names.MFU] < 1


def test_memory_is_the_largest_of_any(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    from controlllm.train.observe.instruments import Instruments
    from controlllm.train.observe.progress import Window
    from controlllm.train.parallel import open_world
    from controlllm.train.setup.ready import set_up

    run = run_config()

    def work(rank: int) -> tuple[float, float]:
        with open_world(run.parallel, "cpu") as world:
            ready = set_up(run, loaded(), world)
            instruments = Instruments(run, ready.loss, world)
            ballast = b"x" * (300 * 2**20 if rank else 0)
            own = names.memory_gib(ready.device)[names.MEMORY_ALLOCATED]
            said = instruments.metrics(Window(steps=1, seconds=1.0))[names.MEMORY_ALLOCATED]
            del ballast
            ready.loader.close()
            return own, said

    (own_0, said_0), (own_1, said_1) = values(run_ranks(work, 2, tmp_path / "ranks"))
    assert own_1 > own_0 + 0.2
    assert said_0 == said_1 == pytest.approx(own_1, abs=0.1)
