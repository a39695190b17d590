"""Real files, whole: every row is there, however they are read."""

import gzip
import json
from pathlib import Path

import pytest
from tests.data.sources.making import chunk_rows, flat, rows_of

from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources import open_chunks, opening

FILES = {
    "sft/gsm8k/train.jsonl.gz": 7473,
    "sft/gsm8k/test.jsonl": 1319,
    "sft/dolly2k/dolly_train.json.gz": 2000,
    "sft/cmath/cmath_dev.jsonl": 600,
    "sft/chat_dataset_zh_extra/code_qa_zh.json.gz": 9057,
    "text/chinese_poetry/poet.tang.0.json": 1000,
    "text/tinyshakespeare/input.txt": 1,
    "eval/bbh6/web_of_lies.json": 250,
    "eval/mmlu20/abstract_algebra.test.arrow": 100,
    "eval/llm_foundry/*.jsonl": 2376 + 1172 + 1838 + 500 + 100 + 1221 + 1267 + 273 + 1000,
    "eval/mmlu20/*": 4795,
}


@pytest.mark.parametrize("name", FILES)
def test_every_row_of_real_files(
    shared_data: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(shared_data / name)
    assert len(rows) == FILES[name] and all(isinstance(row, dict) for row in rows)
    monkeypatch.setattr(opening, "SMALL_BYTES", -1)
    assert flat(chunk_rows(shared_data / name)) == rows


def test_gsm8k_as_it_is(shared_data: Path) -> None:
    path = shared_data / "sft" / "gsm8k" / "train.jsonl.gz"
    with gzip.open(path) as file:
        expected = [json.loads(line) for line in file]
    assert rows_of(path) == expected


def test_shakespeare_by_paragraphs(shared_data: Path) -> None:
    path = shared_data / "text" / "tinyshakespeare" / "input.txt"
    rows = rows_of(path, text_unit="paragraph")
    assert rows[0]["text"] == "First Citizen:\nBefore we proceed any further, hear me speak."
    assert len(rows) == len([p for p in path.read_text("utf-8").split("\n\n") if p.strip()])


def test_arrow_files_are_mapped_row_by_row(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SMALL_BYTES", -1)
    chunks = open_chunks(
        SourceConfig(str(shared_data / "eval" / "mmlu20"), split="test+validation"), 60.0
    )
    assert chunks.by_row and len(chunks) == 4795
