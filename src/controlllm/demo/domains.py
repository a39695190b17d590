"""The demo's data as files: what is learned, and the held-out sets of both domains."""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.storage.files import write_text
from controlllm.data import Batch, DataConfig, SourceConfig, eval_batches
from controlllm.demo.config import DemoConfig
from controlllm.demo.corpus import Domain, passages
from controlllm.evaluate import OwnTextConfig, Writer, write_own_text

__all__ = [
    "LENGTH",
    "NEW",
    "OLD",
    "Choosing",
    "HeldOut",
    "choosing",
    "data_config",
    "held_out",
    "write_data",
]

OLD: Domain = "english"
NEW: Domain = "code"
CHOOSES = "chooses"
"""Ends the names of files that settings are chosen on."""
LENGTH = 256
"""Tokens of one row."""
_ROWS = 16
_PADDED = DataConfig(max_length=LENGTH, packing=False)


@dataclass(frozen=True)
class HeldOut:
    """Batches that no model was trained on, by name of the set: of the new and the old domain.

    They are reported, and choose nothing.
    """

    learn: dict[str, list[Batch]]
    retain: dict[str, list[Batch]]


@dataclass(frozen=True)
class Choosing:
    """Batches that settings of dials are chosen on: none of them are reported.

    Attributes:
        learn: other held-out text of the new domain.
        old: other held-out text of the old domain.
        own: what the base wrote by itself, for who has no old text.
    """

    learn: dict[str, list[Batch]]
    old: dict[str, list[Batch]]
    own: dict[str, list[Batch]]


def write_data(folder: Path, config: DemoConfig) -> None:
    """Write `code-train.jsonl` and, held out of both domains, what is reported and what chooses."""
    _write(folder / f"{NEW}-train.jsonl", passages("code", "train"))
    # Learning is the larger number: a smaller sample tells which setting learns more.
    for domain, share in ((NEW, 4), (OLD, 2)):
        texts = passages(domain, "held_out")
        reported = _spread(texts, config.eval_passages)
        others = [text for text in texts if text not in reported]
        _write(folder / f"{domain}.jsonl", reported)
        chooses = _spread(others, -(-config.eval_passages // share))
        _write(folder / f"{domain}-{CHOOSES}.jsonl", chooses)


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
    return HeldOut(
        learn=_batches(folder, NEW, NEW, tokenizer), retain=_batches(folder, OLD, OLD, tokenizer)
    )


def choosing(
    folder: Path, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: DemoConfig
) -> Choosing:
    """What chooses, in padded batches; the base writes its own text, cached in `folder`."""
    number = max(8, config.eval_passages // 2)
    settings = OwnTextConfig(measure=True, num_sequences=number, seed=config.seed)
    own = write_own_text(Writer.base(base), tokenizer, settings, _PADDED, folder / "own_text")
    return Choosing(
        learn=_batches(folder, NEW, f"{NEW}-{CHOOSES}", tokenizer),
        old=_batches(folder, OLD, f"{OLD}-{CHOOSES}", tokenizer),
        own={name: eval_batches(one, tokenizer, _PADDED, _ROWS) for name, one in own.items()},
    )


def _batches(
    folder: Path, domain: str, file: str, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Batch]]:
    source = SourceConfig(str(folder / f"{file}.jsonl"))
    return {domain: eval_batches(source, tokenizer, _PADDED, _ROWS)}


def _write(path: Path, texts: list[str]) -> None:
    write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def _spread(texts: list[str], count: int) -> list[str]:
    """`count` texts at even distances, so that many files are among them."""
    step = max(len(texts) / count, 1)
    return [texts[int(index * step)] for index in range(min(count, len(texts)))]
