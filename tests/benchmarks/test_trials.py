"""Trials of rehearsal and of scale: each does what its docstring says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.scaled_base import with_larger_stream
from benchmarks.study.trials import block_scale, rehearsed_text, repair
from tests.laws.architectures import make_base
from tests.laws.models import batch

from controlllm import expand
from controlllm.checkpoint import load_model
from controlllm.demo.config import base_model_path
from controlllm.train import RunConfig, train
from controlllm.train.setup import base as setup


@pytest.fixture
def loaded() -> Any:
    """The base that ships with the package."""
    return load_model(str(base_model_path()))


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """Four steps with rehearsal, half of each batch."""
    (tmp_path / "new.txt").write_text("def add(a, b):\n    return a + b\n" * 200)
    return RunConfig.from_dict(
        {
            "expansion": {"num_blocks": 2},
            "data": {"train": [{"path": str(tmp_path / "new.txt")}], "max_length": 48},
            "rehearsal": {
                "num_sequences": 8,
                "share": 0.5,
                "length": 48,
                "cache_dir": str(tmp_path / "rehearsal"),
            },
            "training": {
                "output_dir": str(tmp_path / "run"),
                "max_steps": 4,
                "per_device_train_batch_size": 2,
            },
            "logging": {"report_to": []},
        }
    )


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_scales_grow_as_the_square_of_the_stream(statistic: str) -> None:
    rows = batch() | {"origin": batch()["attention_mask"] - 1}
    base = make_base("llama")
    models = make_base("llama"), with_larger_stream(base, 16.0)
    small, large = (
        block_scale.block_scales(expand(model, num_blocks=2), [rows, rows], statistic)
        for model in models
    )
    assert small.keys() == {1, 3} and min(small.values()) > 0
    assert large == {layer: 256 * scale for layer, scale in small.items()}
    rows["input_ids"][1, 8] = 5  # of what is padding
    again = block_scale.block_scales(expand(base, num_blocks=2), [rows, rows], statistic)
    assert again == small


def test_a_run_is_held_in_units_of_its_blocks(run: RunConfig, loaded: Any, capsys: Any) -> None:
    with block_scale.Trial(batches=2).training():
        model = train(run, loaded).model
    assert "scales {" in capsys.readouterr().out
    weights = [block.weight for block in model.blocks.values()]
    assert len({*weights}) == 2 and 1.0 not in weights


def test_lengths_are_drawn_and_begin_the_same(run: RunConfig, loaded: Any) -> None:
    whole = setup.rehearsal_source(*loaded, run)
    with rehearsed_text.Trial(lengths=[8, 24]).training():
        drawn = setup.rehearsal_source(*loaded, run)
    pairs = [(drawn[i].input_ids, whole[i].input_ids) for i in range(8)]
    assert all(len(a) <= 24 and torch.equal(*map(torch.tensor, (a, b[: len(a)]))) for a, b in pairs)
    assert len({len(a) for a, _ in pairs}) > 2


def test_the_model_that_trains_writes_the_rest(
    run: RunConfig, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, Any]] = []
    sample = repair.sample_sequences

    def write(writer: Any, plan: Any, told: str) -> Any:
        asked.append((plan.num_sequences, writer.model.blocks[1].dial))
        return sample(writer, plan, told)

    monkeypatch.setattr(repair, "sample_sequences", write)
    with repair.Trial(part=0.5, dial=0.3).training():
        model = train(run, loaded).model
    assert asked == [(8, 0.3)]  # once, at its dial, which is put back
    assert model.expansion.dial is None
