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
from controlllm.data import DataConfig, SourceConfig, TokenizedSource, tokenize_source

LIMIT = 16


def tokenized(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Any],
    source: dict[str, Any] | None = None,
    **settings: Any,
) -> TokenizedSource:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(max_length=LIMIT, **settings)
    return tokenize_source(SourceConfig(str(path), **(source or {})), tokenizer, config)


@given(st.text("abc\né二", min_size=1, max_size=80).filter(str.strip))
def test_split_text_predicts_every_token_once(
    tmp_path_factory: pytest.TempPathFactory, pico_tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    source = tokenized(tmp_path_factory.mktemp("s"), pico_tokenizer, [{"text": text}])
    whole = [*pico_tokenizer(text).input_ids, pico_tokenizer.eos_token_id]
    examples = [source[i] for i in range(len(source))]
    assert examples[0].input_ids[0] == whole[0]
    targets = [token for e in examples for token in e.labels.tolist() if token != -100]
    assert targets == whole[1:]
    assert all(2 <= len(e) <= LIMIT and e.labels[0] == -100 for e in examples)
    assert source.stats.split == (len(whole) > LIMIT)
    assert source.stats.targets == len(whole) - 1


def test_long_text_truncated_or_dropped(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"text": "x" * 50}, {"text": "short"}]
    cut = tokenized(tmp_path, pico_tokenizer, rows, long_text="truncate")
    assert cut.lengths.tolist() == [LIMIT, 7]
    assert (cut.stats.truncated, cut.stats.dropped) == (1, 0)
    dropped = tokenized(tmp_path, pico_tokenizer, rows, long_text="drop")
    assert dropped.lengths.tolist() == [7]
    assert (dropped.stats.truncated, dropped.stats.dropped) == (0, 1)
    assert dropped.stats.describe() == "2 rows, 1 examples, 7 tokens, 6 targets, 1 dropped"


def test_rows_without_targets_are_counted(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    rows = [{"prompt": "q" * n, "completion": "aaa"} for n in (3, 14, 16, 40)]
    source = tokenized(tmp_path, pico_tokenizer, rows, chat_template=template)
    assert source.lengths.tolist() == [6, 16]
    assert [int((source[i].labels != -100).sum()) for i in (0, 1)] == [3, 2]
    assert (source.stats.truncated, source.stats.without_targets) == (3, 2)
    with pytest.raises(DataError, match=r"'rows' is empty: 2 rows.* 2 dropped"):
        tokenized(tmp_path, pico_tokenizer, rows[2:], chat_template=template, long_chat="drop")


def test_bad_rows_stop_or_are_counted(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"text": "a"}, {"text": None}, 7, {"other": 1}, {"text": "b"}]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: column 'text' is null"):
        tokenized(tmp_path, pico_tokenizer, rows)
    source = tokenized(tmp_path, pico_tokenizer, rows, {"on_bad_row": "skip"})
    assert (source.stats.rows, source.stats.bad_rows, len(source)) == (5, 3, 2)
    with pytest.raises(DataError, match=r"'rows' is empty: 3 rows.* 3 bad rows"):
        tokenized(tmp_path, pico_tokenizer, rows[1:4], {"on_bad_row": "skip"})


def test_wrong_settings_are_not_mistaken_for_bad_rows(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match="format='txt'"):
        tokenized(
            tmp_path, pico_tokenizer, [{"text": "a"}], {"format": "txt", "on_bad_row": "skip"}
        )


def test_sources_from_tokens() -> None:
    source = TokenizedSource.from_tokens("rehearsal", [[1, 5, 6], [1, 7]])
    assert source[0].labels.tolist() == [-100, 5, 6]
    assert source[1].input_ids.tolist() == [1, 7]
    assert source.stats.targets == 3
    with pytest.raises(IndexError, match="there is no 2"):
        source[2]
    other = TokenizedSource.from_tokens("rehearsal", [[1, 5], [6, 1, 7]])
    assert source.fingerprint != other.fingerprint
