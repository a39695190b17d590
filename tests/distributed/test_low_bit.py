"""AdamW with moments in few bits: some rows on each process, and checkpoints of any of them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.test_training import losses, run_of, train_by
from tests.processes import run_ranks, values
from tests.train.test_low_bit import wide  # noqa: F401

from controlllm.checkpoint import load_checkpoint
from controlllm.train import TrainingConfig
from controlllm.train.config.optimizers import LOW_BIT
from controlllm.train.step.optim import make_optimizer

SAVED = {"save_steps": 100, "eval_steps": 100, "max_steps": 4, "learning_rate": 2e-3}


def updated(name: str, rows: int, mesh: Any = None) -> list[torch.Tensor]:
    """A layer after five steps on the same gradients, however many hold it."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    torch.manual_seed(0)
    layer: Any = torch.nn.Linear(256, rows)
    if mesh is not None:
        fully_shard(layer, mesh=mesh)
    config = TrainingConfig(optim=name, learning_rate=1e-2, weight_decay_ratio=5.0)
    optimizer = make_optimizer(layer, config)
    for step in range(5):
        random = torch.Generator().manual_seed(step)
        for parameter in layer.parameters():
            grad = torch.randn(parameter.shape, generator=random)
            if mesh is not None:
                grad = distribute_tensor(grad, mesh, parameter.placements)
            parameter.grad = grad
        optimizer.step()
    whole = [p.full_tensor() if mesh is not None else p for p in layer.parameters()]
    return [tensor.detach().clone() for tensor in whole]


@pytest.mark.parametrize("rows", [64, 65])
def test_the_updates_are_those_of_one_process_bit_for_bit(tmp_path: Path, rows: int) -> None:
    def ranked(rank: int) -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh("cpu", (2,))
        return {name: updated(name, rows, mesh) for name in LOW_BIT}

    for found in values(run_ranks(ranked, 2, tmp_path)):
        for name, tensors in found.items():
            for tensor, expected in zip(tensors, updated(name, rows), strict=True):
                assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("name", LOW_BIT)
def test_a_run_goes_on_on_two_processes_exactly_and_on_one_closely(
    name: str,
    run_config: Any,
    wide: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Two steps, then two more on two processes; and on one, where the numbers are coarsest."""

    def by(ranks: int, folder: str, tokens: int | None = None) -> list[dict[str, Any]]:
        training = {**SAVED, "optim": name, "max_tokens": tokens}
        data = {"learn": [], "retain": []}
        run = run_of(run_config, tmp_path / folder, training=training, data=data)
        return train_by(run, wide, ranks, tmp_path / "processes")[0]

    half = 2 * 4 * 32 - 100
    straight = losses(by(2, "straight"))
    by(2, "resumed", half)
    shutil.copytree(tmp_path / "resumed", tmp_path / "2 to 1")
    assert losses(by(2, "resumed")) == straight
    a, b = (load_checkpoint(tmp_path / one / "checkpoint-4") for one in ("straight", "resumed"))
    assert any(key.endswith("/codes") for key in a.optimizer_tensors)
    for key, tensor in {**a.tensors, **a.optimizer_tensors}.items():
        assert torch.equal(tensor, {**b.tensors, **b.optimizer_tensors}[key]), key

    if name != "adamw_4bit":
        return
    by(1, "1 to 2", half)
    for ranks, folder in ((1, "2 to 1"), (2, "1 to 2")):
        assert losses(by(ranks, folder)) == pytest.approx(straight, rel=1e-2)


def test_what_is_cut_in_another_way_is_refused_at_the_start(tmp_path: Path) -> None:
    def ranked(rank: int) -> Any:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (2,))
        messages = []
        for shape, dim in (((64, 256), 1), ((1, 8192), 0)):
            weight = torch.nn.Parameter(distribute_tensor(torch.zeros(shape), mesh, [Shard(dim)]))
            with pytest.raises(Exception, match=r"training\.optim=adamw_8bit") as error:
                config = TrainingConfig(optim="adamw_8bit")
                make_optimizer(torch.nn.ParameterList([weight]), config)
            messages.append(f"{type(error.value).__name__}: {error.value}")
        return messages

    for columns, too_few in values(run_ranks(ranked, 2, tmp_path)):
        assert columns.startswith("ConfigError") and "tensor parallelism" in columns
        assert too_few.startswith("ConfigError") and "shard_size" in too_few
