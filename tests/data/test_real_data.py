"""The pipeline on real rows: maths, instructions, identity, Shakespeare, Chinese poems."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from controlllm.common.attention.attention import packed_attention_for, register_packed_attention
from controlllm.common.errors import DataError
from controlllm.common.losses import cross_entropy_sum
from controlllm.data import (
    DataConfig,
    Example,
    SourceConfig,
    TokenStore,
    TrainLoader,
    eval_batches,
    model_inputs,
    read_examples,
)

QA = {"prompt": "question", "completion": "answer"}
ALL_ROWS: dict[str, tuple[str, dict[str, Any], int]] = {
    "gsm8k": ("sft/gsm8k/test.jsonl", {"columns": QA}, 1319),
    "gsm8k_gz": ("sft/gsm8k/train.jsonl.gz", {"columns": QA, "max_rows": 500}, 500),
    "dolly": ("sft/dolly2k", {"max_rows": 500}, 500),
    "identity": ("sft/identity", {}, 91),
    "code": ("sft/mbpp", {"columns": {"prompt": "text", "completion": "code"}}, 974),
    "poems": ("text/chinese_poetry/tangshi300.json", {"columns": {"text": "paragraphs"}}, 366),
    "nested": ("eval/bbh6/*.json", {"columns": {"prompt": "input", "completion": "target"}}, 1500),
    "shakespeare": ("text/tinyshakespeare/input.txt", {}, 1),
    "speeches": ("text/tinyshakespeare/input.txt", {"text_unit": "paragraph"}, 7222),
}


@pytest.fixture(scope="module")
def tokenizer(stories260k: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(stories260k)


@pytest.fixture(scope="module")
def minimind(shared_data: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "minimind6400")


@pytest.mark.parametrize("name", ALL_ROWS)
def test_every_real_row_is_read_and_accounted_for(
    shared_data: Path, minimind: PreTrainedTokenizerBase, name: str
) -> None:
    path, settings, rows = ALL_ROWS[name]
    config = DataConfig(max_length=512, max_eval_tokens=None)
    source = SourceConfig(str(shared_data / path), **settings)
    examples, stats = read_examples(source, minimind, config)
    assert stats.rows == rows
    assert stats.dropped == stats.bad_rows == 0
    assert len(examples) == stats.examples >= rows - stats.without_targets
    assert max(map(len, examples)) <= 512


def test_shakespeare_comes_back_whole(
    shared_data: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = shared_data / "text" / "tinyshakespeare" / "input.txt"
    config = DataConfig(max_length=512, max_eval_tokens=None)
    examples, _ = read_examples(SourceConfig(str(path)), tokenizer, config)
    targets = [t for example in examples for t in example.labels.tolist() if t != -100]
    assert targets[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(targets[:-1]).strip() == path.read_text().strip()


def test_answers_are_the_targets(shared_data: Path, minimind: PreTrainedTokenizerBase) -> None:
    path = shared_data / "sft" / "gsm8k" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()[:50]]
    config = SourceConfig(str(path), columns=QA, max_rows=50)
    examples, _ = read_examples(config, minimind, DataConfig(max_length=2048))
    for example, row in zip(examples, rows, strict=True):
        targets = [token for token in example.labels.tolist() if token != -100]
        assert minimind.decode(targets) == row["answer"] + "<|im_end|>"


def test_a_real_bad_row_is_named(shared_data: Path, minimind: PreTrainedTokenizerBase) -> None:
    path = str(shared_data / "sft" / "chat_dataset_zh_extra" / "terms_zh.json")
    with pytest.raises(DataError, match=r"terms_zh\.json, row 151: column 'instruction' is empty"):
        read_examples(SourceConfig(path), minimind, DataConfig())
    _, stats = read_examples(SourceConfig(path, on_bad_row="skip"), minimind, DataConfig())
    assert (stats.rows, stats.bad_rows) == (152, 1)


def real_config(shared_data: Path, **settings: Any) -> DataConfig:
    return DataConfig(
        train=[
            SourceConfig(str(shared_data / "sft/gsm8k/test.jsonl"), columns=QA, max_rows=200),
            SourceConfig(str(shared_data / "sft/identity"), weight=0.5),
        ],
        replay=[SourceConfig(str(shared_data / "text/tinystories_excerpt/tinystories.txt"))],
        replay_share=0.125,
        max_length=512,
        **settings,
    )


def test_packing_wastes_little(shared_data: Path, minimind: PreTrainedTokenizerBase) -> None:
    loader = TrainLoader(real_config(shared_data), minimind, 4, seed=0)
    origins = torch.cat([next(loader)["origin"].flatten() for _ in range(25)])
    assert (origins >= 0).float().mean() > 0.97


def test_the_real_model_gives_one_loss_packed_and_padded(
    shared_data: Path, stories260k: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    register_packed_attention()
    model = AutoModelForCausalLM.from_pretrained(stories260k)
    source = SourceConfig(str(shared_data / "text/tinystories_excerpt/tinystories.txt"),
                          text_unit="paragraph", max_rows=120)  # fmt: skip
    losses = {}
    for packing, implementation in ((True, packed_attention_for("sdpa")), (False, "sdpa")):
        model.set_attn_implementation(implementation)
        config = DataConfig(max_length=512, packing=packing)
        total, count = 0.0, 0
        for batch in eval_batches(source, tokenizer, config, batch_size=4):
            with torch.no_grad():
                logits = model(**model_inputs(batch)).logits
            part, number = cross_entropy_sum(logits, batch["labels"])
            total, count = total + part.item(), count + int(number)
        losses[packing] = (total / count, count)
    assert losses[True][1] == losses[False][1]
    assert losses[True][0] == pytest.approx(losses[False][0], abs=1e-5)
    assert 1.5 < losses[True][0] < 2.5


def test_rehearsal_joins_the_mix(shared_data: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    written = TokenStore.from_examples("rehearsal", [Example.whole([1, *range(10, 200)])] * 16)
    loader = TrainLoader(real_config(shared_data), tokenizer, 2, 0, (written, 0.125))
    origins = torch.cat([next(loader)["origin"].flatten() for _ in range(50)])
    share = (origins == 2).sum() / (origins >= 0).sum()
    assert share.item() == pytest.approx(0.125, abs=0.02)
