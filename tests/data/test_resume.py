"""A training process that is killed goes on with exactly the batches that were left to it."""

import json
import os
import random
import signal
import time
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.processes import run_processes, start, values
from transformers import PreTrainedTokenizerBase

from controlllm.data import Batch, TrainLoader
from controlllm.data.sources.ranges import RangeChunks
from controlllm.train import RunConfig, train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

STEPS = 40
WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "seven", "dogs", "ran", "far", "away"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Texts, conversations with duplicates, and old texts, of many lengths."""
    chance = random.Random(0)

    def text(words: int) -> str:
        return " ".join(chance.choices(WORDS, k=words))

    sources: dict[str, list[dict[str, Any]]] = {
        "texts": [{"text": f"{i} {text(chance.randint(1, 12))}"} for i in range(150)],
        "chats": [
            {"prompt": f"{i // 2} {WORDS[i // 2 % 12]}?", "completion": WORDS[i // 2 % 9]}
            for i in range(60)
        ],
        "few": [{"text": f"few {i} {text(3)}"} for i in range(12)],
        "old": [{"text": text(chance.randint(1, 9))} for _ in range(50)],
    }
    for name, rows in sources.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def make_run(folder: Path, name: str, packing: bool) -> RunConfig:
    """Raw and prepared sources, one that leaves, a stage, replay; two workers."""
    train_on: list[dict[str, Any]] = [
        {"path": f"{folder}/texts.jsonl", "weight": 2},
        {"path": f"{folder}/chats.jsonl", "deduplicate": True, "difficulty": "length"},
        {"path": f"{folder}/few.jsonl", "epochs": 2},
    ]
    data = {
        "train": train_on,
        "replay": [{"path": f"{folder}/old.jsonl", "sample": 0.8}],
        "replay_share": 0.2,
        "stages": [{"tokens": 400, "weights": {"texts": 1, "few": 1}}],
        "max_length": 48,
        "packing": packing,
        "shuffle_buffer": 16,
        "num_workers": 2,
        "cache_dir": f"{folder}/cache",
    }
    return RunConfig.from_dict(
        {
            "method": "full",
            "model": {"model_name_or_path": str(folder / "base")},
            "data": data | ({"packing_lookahead": 6} if packing else {"group_by_length": True}),
            "training": {
                "output_dir": str(folder / name),
                "max_steps": STEPS,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "learning_rate": 1e-3,
                "save_steps": 3,
                "save_total_limit": 2,
            },
            "logging": {"logging_steps": 1, "report_to": ["jsonl"]},
        }
    )


def digest(batch: Batch) -> str:
    hasher = blake2b(digest_size=12)
    for key in sorted(batch):
        value = batch[key]
        hasher.update(key.encode())
        hasher.update(value.numpy().tobytes() if hasattr(value, "numpy") else repr(value).encode())
    return hasher.hexdigest()


def train_and_log(run: RunConfig, log: Path) -> None:
    """Train; every batch is noted by number and content as it is taken."""
    take = TrainLoader.__next__

    def noted(loader: TrainLoader) -> Batch:
        batch = take(loader)
        with log.open("a") as file:
            file.write(f"{loader.batches} {digest(batch)}\n")
        return batch

    TrainLoader.__next__ = noted  # type: ignore[method-assign]
    train(run)


def read_log(path: Path) -> list[tuple[int, str]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(number), content) for number, content in map(str.split, lines)]


def workers_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("packing", [True, False])
def test_a_killed_run_goes_on_byte_for_byte(
    folder: Path,
    pico_tokenizer: PreTrainedTokenizerBase,
    pico_llama: Any,
    packing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The texts as ranges of a file that is too large to be held in memory.
    monkeypatch.setattr("controlllm.data.sources.opening.SMALL_BYTES", 4000)
    monkeypatch.setattr(RangeChunks.__init__, "__defaults__", (256,))
    monkeypatch.setattr("controlllm.data.loader.batchers.ROWS", 8)
    pico_llama().save_pretrained(folder / "base")
    pico_tokenizer.save_pretrained(folder / "base")
    straight_log, killed_log = folder / "straight.log", folder / "killed.log"
    straight_run = make_run(folder, "straight", packing)
    values(run_processes([lambda: train_and_log(straight_run, straight_log)], folder / "out", 120))
    straight = dict(read_log(straight_log))
    assert len(straight) == len(read_log(straight_log)) == 2 * STEPS
    assert len(set(straight.values())) > 1.5 * STEPS

    run, chance = make_run(folder, "killed", packing), random.Random(packing)
    workers: list[int] = []
    for kill_at in sorted(chance.sample(range(1, 2 * STEPS - 8), 2)):
        process = start(train_and_log, run, killed_log)
        end = time.monotonic() + 60
        while max((n for n, _ in read_log(killed_log)), default=0) < kill_at:
            assert process.is_alive() and time.monotonic() < end
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        workers += workers_of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    values(run_processes([lambda: train_and_log(run, killed_log)], folder / "out", 120))

    logged = read_log(killed_log)
    assert [entry for entry in logged if straight[entry[0]] != entry[1]] == []
    assert {number for number, _ in logged} == set(straight)
    starts = [b for (a, _), (b, _) in pairwise(logged) if b <= a]
    assert any(number > 1 for number in starts)  # from a checkpoint, not all from the beginning
    metrics = [(folder / name / "metrics.jsonl").read_text() for name in ("straight", "killed")]
    losses = [
        [row["train/loss"] for row in map(json.loads, text.splitlines()) if "train/loss" in row]
        for text in metrics
    ]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
    # The workers of a killed process notice, and end.
    end = time.monotonic() + 20
    while left := [pid for pid in workers if not has_ended(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.05)
    assert len(workers) >= 4
