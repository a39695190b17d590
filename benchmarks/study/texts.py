"""Real texts of a study: what is learned, what is chosen on, and what is told.

Each shift has three texts that share no document: one to train on, one that rates and dials are
chosen on, one that is told. Kept texts are told only. Evaluation sets of others are never trained
on. A base with a chat template gets conversations, another one plain text.
"""

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.registry import Registry
from controlllm.common.storage.files import write_text
from controlllm.demo.config import base_model_path

__all__ = ["BASES", "KEPT", "SHIFTS", "Shift", "base_path", "write_kept", "write_shift"]

Row = str | tuple[str, str]
"""A text, or a request and its answer."""

BASES = {"stories260k": "checkpoints/stories260k-hf"}
"""Bases in the data folder; `demo` is the one that ships with the package, others are paths."""


@dataclass(frozen=True)
class Kept:
    """What a base may know already: rows that are told, and others for arms that replay."""

    told: Sequence[Row]
    replay: Sequence[Row]


KEPT: Registry[Callable[[Path], Kept]] = Registry("kept text")
"""Old text by name."""


@dataclass(frozen=True)
class Shift:
    """Rows of one new domain; no row is in two of them."""

    train: Sequence[Row]
    chosen: Sequence[Row]
    told: Sequence[Row]


SHIFTS: Registry[Callable[[Path], Shift]] = Registry("shift")
"""New domains by name."""


def base_path(name: str, data: Path) -> str:
    """Where a base lies."""
    if name == "demo":
        return str(base_model_path())
    return str(data / BASES[name]) if name in BASES else name


def write_shift(
    name: str, data: Path, folder: Path, chat: bool, most: int | None
) -> dict[str, str]:
    """Paths of the files of a shift: train (of `most` characters), chosen and told."""
    shift = SHIFTS.get(name)(data)
    parts = {"train": _begin(shift.train, most), "chosen": shift.chosen, "told": shift.told}
    return {part: _write(folder / f"{name}-{part}", rows, chat) for part, rows in parts.items()}


def write_kept(name: str, data: Path, folder: Path, chat: bool) -> dict[str, str]:
    """Paths of a kept text: what is told under its name, and what is replayed."""
    kept = KEPT.get(name)(data)
    parts = {name: kept.told, f"{name}-replay": kept.replay}
    return {part: _write(folder / part, rows, chat) for part, rows in parts.items()}


def _begin(rows: Sequence[Row], most: int | None) -> Sequence[Row]:
    """The first rows, of about so many characters; a single text is cut."""
    if most is None:
        return rows
    sums = accumulate(len(row) if isinstance(row, str) else sum(map(len, row)) for row in rows)
    number = sum(before < most for before in [0, *sums][:-1])
    first = rows[0]
    return [first[:most]] if isinstance(first, str) and number == 1 else rows[:number]


def _write(path: Path, rows: Sequence[Row], chat: bool) -> str:
    if chat and not isinstance(rows[0], str):
        path, lines = path.with_suffix(".jsonl"), [json.dumps(_conversation(row)) for row in rows]
        text = "\n".join(lines) + "\n"
    else:
        path = path.with_suffix(".txt")
        text = "\n\n".join(row if isinstance(row, str) else "\n".join(row) for row in rows)
    if not path.is_file():
        write_text(path, text)
    elif path.read_bytes() != text.encode():
        raise ConfigError(
            f"{path} holds another text: other data, or another train_characters. "
            "Choose another --output."
        )
    return str(path)


def _conversation(row: Row) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, row, strict=True)]}


def _packed(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


@SHIFTS.register("shakespeare")
def _shakespeare(data: Path) -> Shift:
    """One long text; its last tenth is held out, in two parts."""
    text = (data / "text/tinyshakespeare/input.txt").read_text()
    cut = int(len(text) * 0.9)
    return Shift([text[:cut]], [text[cut : cut + 50_000]], [text[cut + 50_000 :]])


@SHIFTS.register("gsm8k")
def _gsm8k(data: Path) -> Shift:
    """The data set's own splits; the last 400 rows to train on are chosen on instead."""

    def rows(text: str) -> list[Row]:
        return [(row["question"], row["answer"]) for row in map(json.loads, text.splitlines())]

    train = rows(_packed(data / "sft/gsm8k/train.jsonl.gz"))
    told = rows((data / "sft/gsm8k/test.jsonl").read_text())
    return Shift(train[:-400], train[-400:], told)


@SHIFTS.register("mbpp")
def _mbpp(data: Path) -> Shift:
    """Its own splits: tasks 601 to 974 to train on, 511 to 600 to choose on, 11 to 510 are told."""
    lines = (data / "sft/mbpp/mbpp.jsonl").read_text().splitlines()
    tasks = {row["task_id"]: row for row in map(json.loads, lines)}

    def rows(first: int, last: int) -> list[Row]:
        found = (tasks[i] for i in range(first, last + 1) if i in tasks)
        return [(task["text"], task["code"].replace("\r\n", "\n")) for task in found]

    return Shift(rows(601, 974), rows(511, 600), rows(11, 510))


@SHIFTS.register("poetry")
def _poetry(data: Path) -> Shift:
    """Chinese poems by title and author; every tenth is chosen on, every tenth is told."""
    poems = json.loads((data / "text/chinese_poetry/tangshi300.json").read_text())
    rows: list[Row] = [
        (f"寫一首唐詩：{poem['title']}（{poem['author']}）", "\n".join(poem["paragraphs"]))
        for poem in poems
    ]
    held_out = [row for i, row in enumerate(rows) if i % 10 > 7]
    return Shift([r for i, r in enumerate(rows) if i % 10 < 8], held_out[::2], held_out[1::2])


@SHIFTS.register("dolly")
def _learn_dolly(data: Path) -> Shift:
    """All requests and answers; every twentieth is chosen on, every twentieth is told."""
    rows = [(r["instruction"], r["output"]) for r in _dolly_rows(data)]
    train = [row for i, row in enumerate(rows) if i % 20 > 1]
    return Shift(train, rows[::20], rows[1::20])


@KEPT.register("tinystories")
def _tinystories(data: Path) -> Kept:
    text = (data / "text/tinystories_excerpt/tinystories.txt").read_text()
    half = len(text) // 2
    return Kept(told=[text[half:]], replay=[text[:half]])


@KEPT.register("wikipedia")
def _wikipedia(data: Path) -> Kept:
    folder = data / "text/wikitext2_valid_test"
    return Kept([(folder / "test.txt").read_text()], [(folder / "valid.txt").read_text()])


@KEPT.register("dolly")
def _dolly(data: Path) -> Kept:
    """Requests that need no text beside them, and their answers."""
    alone = [(r["instruction"], r["output"]) for r in _dolly_rows(data) if not r.get("input")]
    return Kept(alone[::2], alone[1::2])


def _dolly_rows(data: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(_packed(data / "sft/dolly2k/dolly_train.json.gz"))
    return rows
