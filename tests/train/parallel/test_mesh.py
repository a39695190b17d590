"""Which processes hold copies, and which parts."""

import socket

import pytest
from tests.processes import run_ranks

from controlllm.common.errors import ConfigError, TrainingError
from controlllm.train.config.parallel_config import ParallelConfig
from controlllm.train.parallel import MeshPlan, plan_mesh
from controlllm.train.parallel import world as worlds
from controlllm.train.parallel.processes import Place


@pytest.mark.parametrize(
    ("config", "world", "local", "plan"),
    [
        (ParallelConfig("fsdp"), 8, 4, MeshPlan(1, 8)),
        (ParallelConfig("ddp"), 8, 4, MeshPlan(8, 1)),
        (ParallelConfig("hsdp"), 8, 4, MeshPlan(2, 4)),
        (ParallelConfig("hsdp", shard_size=2), 8, 4, MeshPlan(4, 2)),
        (ParallelConfig("hsdp", shard_size=8), 8, 4, MeshPlan(1, 8)),
        (ParallelConfig("hsdp"), 3, 1, MeshPlan(3, 1)),
    ],
)
def test_plans(config: ParallelConfig, world: int, local: int, plan: MeshPlan) -> None:
    assert plan_mesh(config, world, local) == plan
    assert plan.world_size == world


def test_a_shard_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"shard_size=3 .* 8 processes .* \[1, 2, 4, 8\]"):
        plan_mesh(ParallelConfig("hsdp", shard_size=3), 8, 4)


def test_machines_of_different_sizes_need_a_shard_size(tmp_path, monkeypatch) -> None:
    def open_as(config):
        def call(rank):
            # Two machines, one with two of the three processes.
            place = Place(rank, 3, *[(0, 2), (1, 2), (0, 1)][rank], "localhost", 1)
            monkeypatch.setattr(worlds, "place_in", lambda: place)
            with worlds.open_world(config, "cpu") as world:
                return world.mesh.shape

        return run_ranks(call, 3, tmp_path)

    told = [outcome.error for outcome in open_as(ParallelConfig("hsdp"))]
    assert all("the machines have [1, 2] of them; give a number" in str(error) for error in told)
    shapes = [outcome.value for outcome in open_as(ParallelConfig("hsdp", shard_size=1))]
    assert shapes == [(3, 1)] * 3


@pytest.mark.parametrize(
    ("local", "count", "visible", "device"),
    [((3, 4), 4, None, 3), ((1, 2), 8, None, 1), ((3, 4), 1, "5", 0), ((0, 1), 1, None, 0)],
)
def test_each_process_takes_its_gpu(monkeypatch, local, count, visible, device) -> None:
    """Of all, or the only one that its launcher shows it."""
    set_visible(monkeypatch, visible)
    assert worlds._device_of(Place(local[0], 4, *local, "localhost", 1), count) == device


@pytest.mark.parametrize(("count", "visible"), [(1, None), (2, None), (2, "0,1"), (0, "")])
def test_more_processes_than_gpus_are_refused(monkeypatch, count, visible) -> None:
    set_visible(monkeypatch, visible)
    with pytest.raises(ConfigError, match=f"4 processes on this machine, .* {count} GPUs"):
        worlds._device_of(Place(3, 4, 3, 4, "localhost", 1), count)


def set_visible(monkeypatch, devices) -> None:
    for name in worlds._VISIBLE:
        monkeypatch.delenv(name, raising=False)
    if devices is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)


def test_one_process_is_no_tensor_group() -> None:
    alone = worlds.open_world(ParallelConfig(tensor_size=2), "cpu")
    with pytest.raises(ConfigError, match="tensor_size=2 does not divide"), alone:
        pass


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        launched = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}
        for name, value in {**launched, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        joining = worlds.open_world(ParallelConfig(timeout=20), "cpu")
        with pytest.raises(TrainingError, match=f"{port}: the port is taken"), joining:
            pass
