"""What the tests of other tools train on: a tiny base in a folder, and rows of one length."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainingArguments


@pytest.fixture(scope="session")
def base_folder(pico_llama, pico_tokenizer, tmp_path_factory) -> Path:
    """A pico Llama with its tokenizer, as any tool would load it."""
    folder = tmp_path_factory.mktemp("base")
    pico_llama().save_pretrained(folder)
    pico_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def talking_folder(pico_llama, tmp_path_factory) -> Path:
    """A pico Llama of which one token in four ends an answer, so that they differ in length."""
    folder = tmp_path_factory.mktemp("talking")
    model = pico_llama()
    model.generation_config.eos_token_id = [2, *range(195, 259)]
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def base(base_folder) -> PreTrainedModel:
    """A fresh copy of the base."""
    return AutoModelForCausalLM.from_pretrained(base_folder)


@pytest.fixture(scope="session")
def rows() -> Dataset:
    """Sixteen rows of nine tokens; every micro-batch has as many targets."""
    ids = torch.randint(3, 259, (16, 9), generator=torch.Generator().manual_seed(5)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


@pytest.fixture
def arguments(tmp_path) -> Callable[..., TrainingArguments]:
    """`arguments(max_steps=4)`: how the trainers of these tests train, in `tmp_path/run`."""

    def make(**changes) -> TrainingArguments:
        settings = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 4,
            "save_steps": 2,
            "learning_rate": 0.01,
            "lr_scheduler_type": "constant",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 1,
        }
        return TrainingArguments(**settings | changes)

    return make


@pytest.fixture(scope="session")
def page_configs(repository) -> Callable[[str], list[dict[str, Any]]]:
    """`page_configs("axolotl")`: the YAML blocks of that tool's page."""

    def read(tool: str) -> list[dict[str, Any]]:
        text = (repository / "docs" / "integrations" / f"{tool}.md").read_text()
        return [yaml.safe_load(b) for b in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)]

    return read
