"""The hook over a whole source, in one process (several: `test_ranks`), and what it may ask for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError, DataError
from controlllm.data import (
    DataConfig,
    PostprocessContext,
    SourceConfig,
    TokenStore,
    TrainLoader,
    eval_batches,
    register_postprocess,
)
from controlllm.data.cache.prepare import prepare_source
from controlllm.data.examples.encode import RowEncoder
from controlllm.data.sources import open_chunks

Rows = Iterator[Any]


@register_postprocess("test_postprocess.joined", sharded=False)
def joined(rows: Rows, context: PostprocessContext) -> Rows:
    """Two rows become one; what is left over is dropped."""
    before = None
    for row in rows:
        if before is not None:
            yield {"text": before["text"] + context.tokenizer.eos_token + row["text"]}
            before = None
        else:
            before = row


@register_postprocess("test_postprocess.fails")
def fails(rows: Rows, context: PostprocessContext) -> Rows:
    yield next(rows)
    yield {"text": str(1 // 0)}


@register_postprocess("test_postprocess.strange")
def strange(rows: Rows, context: PostprocessContext) -> Rows:
    yield next(rows)
    yield "not a row"  # type: ignore[misc]
    yield {"txt": "no format"}
    yield {"text": "good"}


@register_postprocess("test_postprocess.asks", uses_model=True)
def asks(rows: Rows, context: PostprocessContext) -> Rows:
    for row in rows:
        yield {"text": f"{row['text']} {context.model.config.hidden_size}"}


@register_postprocess("test_postprocess.asks_unsaid")
def asks_unsaid(rows: Rows, context: PostprocessContext) -> Rows:
    for row in rows:
        yield {"text": f"{row['text']} {context.model.config.hidden_size}"}


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    rows = [{"text": f"row {i}", "id": i % 3} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(str(tmp_path / "rows.jsonl"))
    return DataConfig([source], cache_dir=str(tmp_path / "cache"), max_length=64)


def store_of(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, model: Any = None
) -> TokenStore:
    encoder = RowEncoder(config.train[0], tokenizer, config, training=True)
    return prepare_source(encoder, open_chunks(config.train[0]), model)


def texts(store: TokenStore, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [tokenizer.decode(store[i].input_ids)[3:-4] for i in range(len(store))]


def test_rows_are_chosen_then_rewritten_then_selected(
    config: DataConfig, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    source = config.train[0]
    source.postprocess = "test_postprocess.joined"
    source.where = {"id": [0, 1]}
    store = store_of(config, pico_tokenizer)
    wanted = ["row 0</s>row 1", "row 3</s>row 4", "row 6</s>row 7"]
    assert texts(store, pico_tokenizer) == wanted
    assert (store.stats.rows, store.stats.filtered, store.stats.examples) == (9, 6, 3)
    source.sample_rows = 2
    assert len(store_of(config, pico_tokenizer)) == 2


def test_training_and_evaluation_use_it(
    config: DataConfig, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    config.train[0].postprocess = "test_postprocess.joined"
    loader = TrainLoader(config, pico_tokenizer, 1, seed=0)
    assert "4 rows" in loader.describe()
    (batch, *_) = eval_batches(config.train[0], pico_tokenizer, config, 8)
    assert pico_tokenizer.decode(batch["input_ids"][0]).count("row") == 8


def test_a_hook_that_fails_is_named(
    config: DataConfig, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    config.train[0].postprocess = "test_postprocess.fails"
    words = r"source 'rows': the postprocess hook 'test_postprocess.fails' fails after 1 rows: Zero"
    with pytest.raises(DataError, match=words):
        store_of(config, pico_tokenizer)
    config.train[0].postprocess = "test_postprocess.fail"
    with pytest.raises(ConfigError, match=r"Did you mean 'test_postprocess.fails'"):
        store_of(config, pico_tokenizer)


def test_what_a_hook_makes_is_checked_as_any_row(
    config: DataConfig, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    config.train[0].postprocess = "test_postprocess.strange"
    with pytest.raises(DataError, match=r"row 1 of postprocess 'test_postprocess.strange': a row"):
        store_of(config, pico_tokenizer)
    config.train[0].on_bad_row = "skip"
    store = store_of(config, pico_tokenizer)
    assert texts(store, pico_tokenizer) == ["row 0", "good"]
    assert store.stats.bad_rows == 2


def test_the_model(
    config: DataConfig, pico_tokenizer: PreTrainedTokenizerBase, pico_llama: Any
) -> None:
    config.train[0].postprocess = "test_postprocess.asks"
    store = store_of(config, pico_tokenizer, pico_llama())
    assert texts(store, pico_tokenizer)[0] == "row 0 32"
    with pytest.raises(DataError, match=r"needs the model; it runs at the start of"):
        store_of(config, pico_tokenizer)
    config.train[0].postprocess = "test_postprocess.asks_unsaid"
    with pytest.raises(DataError, match=r"register it as .*uses_model=True"):
        store_of(config, pico_tokenizer, pico_llama())
