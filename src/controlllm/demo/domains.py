"""The demo's data as files: what is learned, and the held-out sets of both domains."""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from controlllm.common.storage.files import write_text
from controlllm.data import Batch, DataConfig, SourceConfig, eval_batches
from controlllm.demo.config import DemoConfig
from controlllm.demo.corpus import passages

__all__ = ["LENGTH", "NEW", "OLD", "HeldOut", "data_config", "held_out", "write_data"]

OLD, NEW = "english", "code"
LENGTH = 256
"""Tokens of one row."""


@dataclass(frozen=True)
class HeldOut:
    """Batches that no model was trained on, by name of the set: of the new and the old domain."""

    learn: dict[str, list[Batch]]
    retain: dict[str, list[Batch]]


def write_data(folder: Path, config: DemoConfig) -> None:
    """Write `code-train.jsonl`, `code.jsonl` and `english.jsonl` (held out) into `folder`."""
    _write(folder / f"{NEW}-train.jsonl", passages("code", "train"))
    _write(folder / f"{NEW}.jsonl", _spread(passages("code", "held_out"), config.eval_passages))
    english = passages("english", "held_out")
    _write(folder / f"{OLD}.jsonl", _spread(english, config.eval_passages))


def data_config(folder: Path) -> DataConfig:
    """What is trained on and what is measured in training: no text of the old domain is trained."""
    return DataConfig(
        train=[SourceConfig(str(folder / f"{NEW}-train.jsonl"))],
        learn=[SourceConfig(str(folder / f"{NEW}.jsonl"))],
        retain=[SourceConfig(str(folder / f"{OLD}.jsonl"))],
        max_length=LENGTH,
    )


def held_out(folder: Path, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
    """The held-out sets in padded batches, which any attention understands."""
    config = DataConfig(max_length=LENGTH, packing=False)

    def batches(domain: str) -> dict[str, list[Batch]]:
        source = SourceConfig(str(folder / f"{domain}.jsonl"))
        return {domain: list(eval_batches(source, tokenizer, config, batch_size=16))}

    return HeldOut(learn=batches(NEW), retain=batches(OLD))


def _write(path: Path, texts: list[str]) -> None:
    write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def _spread(texts: list[str], count: int) -> list[str]:
    """`count` texts at even distances, so that many files are among them."""
    step = max(len(texts) / count, 1)
    return [texts[int(index * step)] for index in range(min(count, len(texts)))]
