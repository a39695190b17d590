"""What a user's code registers by name: collators, and hooks with what they declare."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError
from controlllm.data import (
    DataConfig,
    SourceConfig,
    TrainLoader,
    register_collator,
    register_postprocess,
)
from controlllm.data.config.hooks import POSTPROCESS
from controlllm.data.loader.collate import REPLAY, TRAIN, packed_batch


@register_collator("test_hooks.marked")
def marked(groups: Any, max_length: int, pad_id: int) -> dict[str, Any]:
    """The usual tensors, and how many documents of each origin there are."""
    origins = [origin for group in groups for _, origin in group]
    counts = {name: origins.count(o) for name, o in (("new", TRAIN), ("old", REPLAY))}
    return {**packed_batch(groups, max_length, pad_id), **counts}


def test_a_collator_of_ones_own(tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("a", "b"):
        rows = [{"text": f"{name}{i}"} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(
        train=[SourceConfig(f"{tmp_path}/a.jsonl")],
        replay=[SourceConfig(f"{tmp_path}/b.jsonl")],
        replay_share=0.25,
        mix_by="rows",
        max_length=64,
        collator="test_hooks.marked",
    )
    loader = TrainLoader(config, pico_tokenizer, 2, seed=0)
    batches = [next(loader) for _ in range(8)]
    usual = DataConfig(**{**vars(config), "collator": None})
    plain = TrainLoader(usual, pico_tokenizer, 2, seed=0)
    for batch in batches:
        assert batch["input_ids"].tolist() == next(plain)["input_ids"].tolist()
    new, old = (sum(batch[name] for batch in batches) for name in ("new", "old"))
    assert new + old == sum(int((b["input_ids"] == 1).sum()) for b in batches)
    assert abs(old - 0.25 * (new + old)) <= 3  # packing keeps some waiting
    config.collator = "test_hooks.marks"
    with pytest.raises(ConfigError, match=r"Did you mean 'test_hooks.marked'"):
        next(TrainLoader(config, pico_tokenizer, 2, seed=0))


def test_names_are_taken_once() -> None:
    register_postprocess("test_hooks.once", sharded=False, uses_model=True)(lambda rows, _: rows)
    known = POSTPROCESS.get("test_hooks.once")
    assert (known.sharded, known.uses_model) == (False, True)
    for register in (register_postprocess("test_hooks.once"), register_collator("packed")):
        with pytest.raises(ConfigError, match="registered already"):
            register(lambda *_: iter(()))  # type: ignore[arg-type, return-value]
