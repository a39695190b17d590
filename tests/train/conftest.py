"""A tiny run: a pico Llama on bytes, two short domains, everything under `tmp_path`."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from controlllm.train import RunConfig

OLD = "the cat sat on the mat and the dog lay by the fire. "
NEW = "def add(a, b):\n    return a + b\n\nclass Point:\n    x = 0\n\n"


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    """Paths of four text files: training and held-out text of the new and the old domain."""
    contents = {"new": NEW * 30, "new_heldout": NEW * 3, "old": OLD * 30, "old_heldout": OLD * 3}
    for name, text in contents.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return {name: str(tmp_path / f"{name}.txt") for name in contents}


@pytest.fixture
def run_config(tmp_path: Path, texts: dict[str, str]) -> Callable[..., RunConfig]:
    """`run_config(**sections)`: a run of 6 short steps; keyword sections are laid over it."""

    def make(**over: Any) -> RunConfig:
        from controlllm.train.config.config_io import merge

        values = {
            "expansion": {"num_blocks": 2},
            "data": {
                "train": [{"path": texts["new"]}],
                "learn": [{"path": texts["new_heldout"], "name": "new"}],
                "retain": [{"path": texts["old_heldout"], "name": "old"}],
                "max_length": 32,
            },
            "training": {
                "output_dir": str(tmp_path / "run"),
                "max_steps": 6,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "learning_rate": 2e-2,
                "eval_steps": 3,
                "save_steps": 2,
                "save_total_limit": None,
            },
            "logging": {"logging_steps": 1, "report_to": ["jsonl"]},
        }
        return RunConfig.from_dict(merge(values, over))

    return make


@pytest.fixture(scope="session")
def pretrained_pico(pico_llama: Any, pico_tokenizer: Any) -> Any:
    """A pico Llama that knows the old domain, so that it has something to forget."""
    return learned_old(pico_llama(seed=1, initializer_range=0.1), pico_tokenizer)


def learned_old(model: Any, tokenizer: Any) -> Any:
    """The model after a while on the old domain."""
    model.train()
    ids = torch.tensor(tokenizer(OLD * 3).input_ids).unfold(0, 32, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.zero_grad()
    return model.eval()


@pytest.fixture
def loaded(pretrained_pico: Any, pico_tokenizer: Any) -> Callable[[], tuple[Any, Any]]:
    """`loaded()`: a fresh copy of the pico model, and its tokenizer."""
    return lambda: (copy.deepcopy(pretrained_pico), copy.deepcopy(pico_tokenizer))
