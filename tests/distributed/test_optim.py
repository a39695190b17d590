"""Options of the optimizer and its schedule, by two processes as by one."""

from pathlib import Path
from typing import Any

import pytest
from tests.distributed.test_training import losses, run_of, train_by

OPTIONS = {
    "lr_scheduler_type": "warmup_stable_decay",
    "lr_decay_steps": 3,
    "lr_decay_type": "1-sqrt",
    "weight_decay_ratio": 20.0,
    "eval_steps": 100,
}


def test_wsd_and_decay_by_the_rate(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    histories = {}
    for ranks in (1, 2):
        run = run_of(run_config, tmp_path / f"by {ranks}", training=OPTIONS)
        histories[ranks] = train_by(run, loaded, ranks, tmp_path / "processes")[0]
    assert losses(histories[2]) == pytest.approx(losses(histories[1]), rel=2e-4)
    plain = run_of(run_config, tmp_path / "plain", training=OPTIONS | {"weight_decay_ratio": None})
    without = train_by(plain, loaded, 1, tmp_path / "processes")[0]
    assert losses(histories[1])[-1] != pytest.approx(losses(without)[-1], rel=2e-4)
