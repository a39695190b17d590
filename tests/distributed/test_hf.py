"""`transformers.Trainer` in several processes trains what one native process trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.test_training import losses, run_of, train_by

from controlllm.checkpoint import load_checkpoint, newest_checkpoint

WAYS = {
    "fsdp 2": (2, {"strategy": "fsdp"}),
    "ddp 2": (2, {"strategy": "ddp"}),
    "hsdp 2x2": (4, {"strategy": "hsdp", "shard_size": 2}),
    "zero2": (2, {"strategy": "zero2"}),
    "zero3": (2, {"strategy": "zero3"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_trainer_trains_what_one_native_process_trains(
    run_config: Any, loaded: Any, tmp_path: Path, way: str
) -> None:
    [expected] = train_by(run_of(run_config, tmp_path / "alone"), loaded, 1, tmp_path)
    weights = load_checkpoint(newest_checkpoint(tmp_path / "alone"))
    ranks, parallel = WAYS[way]
    run = run_of(run_config, tmp_path / "run", training={"backend": "hf"}, parallel=parallel)
    for history in train_by(run, loaded, ranks, tmp_path / "processes"):
        assert losses(history) == pytest.approx(losses(expected), rel=2e-4)
    found = load_checkpoint(newest_checkpoint(tmp_path / "run"))
    assert found.tensors.keys() == weights.tensors.keys()
    assert found.optimizer_tensors.keys() == weights.optimizer_tensors.keys()
    for place in ("tensors", "optimizer_tensors"):
        for name, tensor in getattr(weights, place).items():
            torch.testing.assert_close(
                getattr(found, place)[name], tensor, rtol=1e-3, atol=1e-4, msg=name
            )
