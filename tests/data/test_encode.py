"""Every row of a source becomes examples or a count, never nothing."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.data import DataConfig, Example, SourceConfig, SourceStats, read_examples

LIMIT = 16


def tokenized(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Any],
    source: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[list[Example], SourceStats]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(max_length=LIMIT, **settings)
    return read_examples(SourceConfig(str(path), **(source or {})), tokenizer, config)


@given(st.text("abc\né二", min_size=1, max_size=80).filter(str.strip))
def test_split_text_predicts_every_token_once(
    tmp_path_factory: pytest.TempPathFactory, pico_tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    examples, stats = tokenized(tmp_path_factory.mktemp("s"), pico_tokenizer, [{"text": text}])
    whole = [*pico_tokenizer(text).input_ids, pico_tokenizer.eos_token_id]
    assert examples[0].input_ids[0] == whole[0]
    targets = [token for e in examples for token in e.labels.tolist() if token != -100]
    assert targets == whole[1:]
    assert all(2 <= len(e) <= LIMIT and e.labels[0] == -100 for e in examples)
    assert stats.split == (len(whole) > LIMIT)
    assert stats.targets == len(whole) - 1


def test_long_text_truncated_or_dropped(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"text": "x" * 50}, {"text": "short"}]
    cut, stats = tokenized(tmp_path, pico_tokenizer, rows, long_text="truncate")
    assert list(map(len, cut)) == [LIMIT, 7]
    assert (stats.truncated, stats.dropped) == (1, 0)
    dropped, stats = tokenized(tmp_path, pico_tokenizer, rows, long_text="drop")
    assert list(map(len, dropped)) == [7]
    assert (stats.truncated, stats.dropped) == (0, 1)
    assert stats.describe() == "2 rows, 1 examples, 7 tokens, 6 targets, 1 dropped"


def test_rows_without_targets_are_counted(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    rows = [{"prompt": "q" * n, "completion": "aaa"} for n in (3, 14, 16, 40)]
    examples, stats = tokenized(tmp_path, pico_tokenizer, rows, chat_template=template)
    assert list(map(len, examples)) == [6, 16]
    assert [int((example.labels != -100).sum()) for example in examples] == [3, 2]
    assert (stats.truncated, stats.without_targets) == (3, 2)
    with pytest.raises(DataError, match=r"'rows' holds no example: 2 rows.* 2 dropped"):
        tokenized(tmp_path, pico_tokenizer, rows[2:], chat_template=template, long_chat="drop")


def test_bad_rows_stop_or_are_counted(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"text": "a"}, {"text": None}, 7, {"other": 1}, {"text": "b"}]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: column 'text' is null"):
        tokenized(tmp_path, pico_tokenizer, rows)
    examples, stats = tokenized(tmp_path, pico_tokenizer, rows, {"on_bad_row": "skip"})
    assert (stats.rows, stats.bad_rows, len(examples)) == (5, 3, 2)
    with pytest.raises(DataError, match=r"'rows' holds no example: 3 rows.* 3 bad rows"):
        tokenized(tmp_path, pico_tokenizer, rows[1:4], {"on_bad_row": "skip"})


def test_wrong_settings_are_not_mistaken_for_bad_rows(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match="format='txt'"):
        tokenized(
            tmp_path, pico_tokenizer, [{"text": "a"}], {"format": "txt", "on_bad_row": "skip"}
        )
