"""Ways to learn besides plain control and full, and what their tests share."""

import copy
from pathlib import Path
from typing import Any

import torch

from controlllm.train import RunConfig

LORA = {"method": "lora", "peft": {"r": 4}}
ON_TOP = {"peft": {"type": "lora", "r": 4}, "expansion": {"num_blocks": 1, "layers": [1]}}
REHEARSED = {"rehearsal": {"num_sequences": 6, "share": 0.3}}
WAYS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "dora": {"method": "lora", "peft": {"type": "dora", "r": 2, "dropout": 0.1}},
    "oft": {"method": "lora", "peft": {"type": "oft", "block_size": 8}},
    "freeze": {"method": "freeze", "freeze": {"num_layers": 1, "also_train": ["norm"]}},
    "stack": {"method": "stack"},
    "replay": {"method": "replay"},
    "kl": {"method": "kl"},
    "on top": ON_TOP,
    "on top, dora": {**ON_TOP, "peft": {"type": "dora", "r": 2}},
    "on top, oft": {**ON_TOP, "peft": {"type": "oft", "block_size": 8}},
}
SAVED = {"lora": "adapters", "freeze": "part", "stack": "control", "replay": "full", "kl": "full"}


def run_of(run_config: Any, texts: dict[str, str], way: str, **over: Any) -> RunConfig:
    """A run of one of the ways; replay gets old data."""
    values = copy.deepcopy(WAYS.get(way, {"method": way}))
    if way == "replay":
        values["data"] = {"replay": [{"path": texts["old"]}], "replay_share": 0.25}
    return run_config(**values, **over)


def base_folder(loaded: Any, tmp_path: Path) -> str:
    """The pico base as a folder, so that checkpoints can name it."""
    folder = tmp_path / "base"
    if not folder.exists():
        model, tokenizer = loaded()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 40).view(1, -1)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits
