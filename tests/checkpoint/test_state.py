"""Training checkpoints: exact round trips, damage of every kind, killed writers, a full disk."""

import itertools
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.processes import start

from controlllm.checkpoint.training import checkpoints
from controlllm.checkpoint.training.codec import capture_rng, restore_rng
from controlllm.checkpoint.training.state import TrainingState, load_checkpoint, save_checkpoint
from controlllm.common.errors import CheckpointError


def make_state(step: int = 3, size: int = 6) -> TrainingState:
    return TrainingState(
        step=step,
        tensors={"w": torch.arange(float(size)), "b": torch.ones(2, dtype=torch.bfloat16)},
        model={"method": "control", "config": {"format": 1, "base": {"name_or_path": "x"}}},
        optimizer={"groups": [{"betas": (0.9, 0.95)}], "values": {}},
        optimizer_tensors={"optimizer/w/exp_avg": torch.full((size,), 0.25)},
        loader={"next_index": 17},
        rng=[capture_rng()],
        history=[{"step": 1, "train/loss": 2.5}],
        extra={"best": None},
    )


def test_round_trip_is_exact(tmp_path: Path) -> None:
    state = make_state()
    folder = save_checkpoint(tmp_path, state)
    assert folder == tmp_path / "checkpoint-3"
    loaded = load_checkpoint(folder)
    assert loaded.step == 3
    assert torch.equal(loaded.tensors["w"], state.tensors["w"])
    assert loaded.tensors["b"].dtype == torch.bfloat16
    name = "optimizer/w/exp_avg"
    assert torch.equal(loaded.optimizer_tensors[name], state.optimizer_tensors[name])
    same = ("model", "loader", "optimizer", "history", "extra", "scheduler")
    assert all(getattr(loaded, name) == getattr(state, name) for name in same)


def test_random_states_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1)
    random.gauss(0, 1)
    folder = save_checkpoint(tmp_path, make_state())
    expected = draw()
    draw()
    restore_rng(load_checkpoint(folder).rng[0])
    assert draw() == expected


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["sidecar.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(truncate, "is truncated"), (flip_last_byte, "is damaged"), (Path.unlink, "lacks its file")],
)
def test_damage_is_named_and_never_loaded(tmp_path: Path, name, damage, message) -> None:
    folder = save_checkpoint(tmp_path, make_state())
    damage(folder / name)
    with pytest.raises(CheckpointError, match=rf"{message}.*use another") as error:
        load_checkpoint(folder)
    assert name in str(error.value)


def test_foreign_newer_and_absent_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        load_checkpoint(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        load_checkpoint(tmp_path / "checkpoint-2")
    manifest = save_checkpoint(tmp_path, make_state()) / "manifest.json"
    value = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(value | {"version": 99}))
    with pytest.raises(CheckpointError, match="format 99, newer than"):
        load_checkpoint(manifest.parent)
    manifest.write_text(json.dumps({"format": "other"}))
    with pytest.raises(CheckpointError, match="not written by this library"):
        load_checkpoint(manifest.parent)


def test_auto_falls_back_to_the_newest_whole_one_and_says_so(tmp_path: Path) -> None:
    assert checkpoints.resolve_checkpoint(tmp_path, "auto") is None
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, make_state(step))
    assert checkpoints.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    truncate(tmp_path / "checkpoint-100" / "state.json")
    with pytest.warns(UserWarning, match="Passing over .*checkpoint-100.*truncated"):
        assert checkpoints.resolve_checkpoint(tmp_path, "auto") == tmp_path / "checkpoint-10"
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoints.resolve_checkpoint(tmp_path, tmp_path / "checkpoint-100")


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, make_state(step), save_total_limit=2)
        if step == 1:
            checkpoints.mark_best(tmp_path, 1, {"learn": 2.0})
    names = [path.name for path in checkpoints.list_checkpoints(tmp_path)]
    assert names == ["checkpoint-1", "checkpoint-4"]
    assert checkpoints.best_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert checkpoints.resolve_checkpoint(tmp_path, "best") == tmp_path / "checkpoint-1"


def test_best_must_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint-5"):
        checkpoints.mark_best(tmp_path, 5, {})
    with pytest.raises(CheckpointError, match="no best checkpoint yet"):
        checkpoints.resolve_checkpoint(tmp_path, "best")


def test_same_step_can_be_saved_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_state(5, size=4))
    save_checkpoint(tmp_path, make_state(5, size=8))
    loaded = load_checkpoint(tmp_path / "checkpoint-5")
    assert loaded.tensors["w"].numel() == 8
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def save_for_ever(folder: Path) -> None:
    for step in itertools.count(1):
        value = torch.full((20_000,), float(step))
        model = {"method": "full", "config": {}}
        save_checkpoint(folder, TrainingState(step, {"w": value}, model), save_total_limit=3)


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005])
def test_a_run_killed_while_saving_leaves_a_whole_newest_checkpoint(
    tmp_path: Path, delay: float
) -> None:
    run = start(save_for_ever, tmp_path)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "checkpoint-5").exists():
            assert run.is_alive() and time.monotonic() < end
            time.sleep(0.0005)
        time.sleep(delay)
    finally:
        run.kill()
        run.join()
    newest = checkpoints.resolve_checkpoint(tmp_path, "auto")
    assert newest is not None
    state = load_checkpoint(newest)
    assert state.step >= 5
    assert torch.equal(state.tensors["w"], torch.full((20_000,), float(state.step)))
    assert not list(tmp_path.glob(".*"))


def test_full_disk_names_the_path_and_leaves_older_checkpoints(small_disk: Path) -> None:
    save_checkpoint(small_disk, make_state(1, size=1000))
    with pytest.raises(CheckpointError, match=r"cannot write .*checkpoint-2.*No space left"):
        save_checkpoint(small_disk, make_state(2, size=400_000))
    assert [path.name for path in small_disk.iterdir()] == ["checkpoint-1"]
    assert load_checkpoint(small_disk / "checkpoint-1").step == 1


def test_unpicklable_state_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    state = make_state()
    state.loader = {"iterator": iter([])}
    with pytest.raises(CheckpointError, match=r"loader\.iterator is a list_iterator"):
        save_checkpoint(tmp_path, state)
    assert list(tmp_path.iterdir()) == []
