"""Texts by several processes are those of one, each row scored once."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.processes import run_ranks, values
from tests.train.test_generation import ROWS, curve, own_registries, questions, samples  # noqa: F401

from controlllm.train import train
from controlllm.train.config.config_io import merge
from controlllm.train.observe.answers import Pace
from controlllm.train.parallel import open_world
from controlllm.train.setup.ready import set_up

WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "fsdp 2": (2, {"parallel": {"strategy": "fsdp"}}),
    "fsdp 3": (3, {"parallel": {"strategy": "fsdp"}}),
    "ddp 2": (2, {"parallel": {"strategy": "ddp"}}),
    "tensor 2": (2, {"parallel": {"strategy": "fsdp", "tensor_size": 2}}),
    "hf, fsdp 2": (2, {"parallel": {"strategy": "fsdp"}, "training": {"backend": "hf"}}),
    "hf, zero2": (2, {"parallel": {"strategy": "zero2"}, "training": {"backend": "hf"}}),
    "hf, zero3": (2, {"parallel": {"strategy": "zero3"}, "training": {"backend": "hf"}}),
    "full, fsdp 2": (2, {"parallel": {"strategy": "fsdp"}, "method": "full"}),
}


@pytest.fixture
def writing(run_config: Any, questions: Any) -> Any:  # noqa: F811
    """`writing(folder, **sections)`: two steps of six rows, and texts before and after."""

    def make(folder: Path, **over: Any) -> Any:
        run: dict[str, Any] = {
            "data": {"learn": [questions()], "retain": [], "max_length": 96, "lanes": 6},
            "training": {
                "output_dir": str(folder),
                "max_steps": 2,
                "eval_steps": 2,
                "save_steps": 2,
                "per_device_train_batch_size": 1,
                "per_device_eval_batch_size": 2,
                "gradient_accumulation_steps": 1,
                "total_train_batch_size": 6,
            },
            "evaluation": {
                "generation": {
                    "sets": ["qa"],
                    "metrics": ["rouge", "chrf", "token_accuracy", "auc"],
                    "max_new_tokens": 8,
                }
            },
        }
        return run_config(**merge(run, over))

    return make


@pytest.fixture(scope="module")
def by_one() -> dict[str, Any]:
    """What one process gave, by method: its curve, and its texts by step."""
    return {}


@pytest.mark.parametrize("way", WAYS)
def test_several_processes_write_what_one_writes(
    writing: Any, loaded: Any, tmp_path: Path, by_one: dict[str, Any], way: str
) -> None:
    count, over = WAYS[way]
    method = over.get("method", "control")
    if method not in by_one:
        result = train(writing(tmp_path / "one", method=method), loaded())
        texts = {step: samples(result.output_dir, step) for step in (0, 2)}
        by_one[method] = curve(result.history), texts
    expected, texts = by_one[method]
    run = writing(tmp_path / "several", **over)
    several = values(
        run_ranks(lambda rank: train(run, loaded()).history, count, tmp_path / "ranks", timeout=200)
    )
    for history in several:  # On every process the same.
        found = curve(history)
        assert sorted(found) == sorted(expected) == [0, 2]
        for step, numbers in found.items():
            assert numbers["rows"] == len(ROWS)
            assert numbers == pytest.approx(expected[step], abs=1e-3), step
    for step in (0, 2):
        assert samples(tmp_path / "several", step) == texts[step]
    lines = (tmp_path / "several" / "metrics.jsonl").read_text().splitlines()
    assert sorted(curve([json.loads(line) for line in lines])) == [0, 2]


def test_time_cuts_all_processes_at_the_same_row(writing: Any, loaded: Any, tmp_path: Path) -> None:
    bound = {"evaluation": {"generation": {"max_seconds": 1e-6}}}
    run = writing(tmp_path / "run", parallel={"strategy": "fsdp"}, **bound)
    several = values(
        run_ranks(lambda rank: train(run, loaded()).history, 2, tmp_path / "ranks", timeout=100)
    )
    assert [{row["rows"] for row in curve(history).values()} for history in several] == [{4}, {4}]
    assert len(samples(tmp_path / "run", 2)) == 4


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_texts_of_different_lengths_do_not_part_the_processes(
    writing: Any, loaded: Any, tmp_path: Path, strategy: str
) -> None:
    def write(folder: str, ends: set[int]) -> list[str]:
        run = writing(tmp_path / folder, parallel={"strategy": strategy})
        with open_world(run.parallel, "cpu") as world:
            ready = set_up(run, loaded(), world)
            ready.texts.ends["qa"] = ends
            answers = ready.texts.write(ready.model, Pace(lambda: 0.0))["qa"]
            ready.loader.close()
        return [answer.text for answer in answers]

    # A letter that ends texts soon, late, or not at all: who is done has to go on with the others.
    free = write("free", {2})
    letter = max({*"".join(free)}, key=lambda one: len({text.find(one) for text in free}))
    ends = {2, ord(letter) + 3}
    one = write("one", ends)
    assert len({*map(len, one)}) > 1
    ranks = run_ranks(lambda rank: write("several", ends), 2, tmp_path / "ranks", timeout=100)
    assert values(ranks) == [one, one]
