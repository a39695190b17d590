"""What the tests of foreign model files share: a base on disk, an expanded model, small edits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from controlllm import ControlLLMForCausalLM, expand
from controlllm.checkpoint import trained_tensors
from controlllm.expansion.files.adapter_config import AdapterConfig
from controlllm.expansion.hub.peft import add_adapters

IDS = torch.tensor([[1, 40, 50, 60, 70, 80]])


@torch.no_grad()
def logits_of(model: PreTrainedModel) -> Tensor:
    return model.eval()(input_ids=IDS).logits


def write_base(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def disturbed(model: Any) -> Any:
    """The model, changed as training would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained_tensors(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def expanded_on(base: Path, **settings: Any) -> ControlLLMForCausalLM:
    return disturbed(expand(LlamaForCausalLM.from_pretrained(base), num_blocks=2, **settings))


def adapted_on(base: Path) -> PreTrainedModel:
    model = LlamaForCausalLM.from_pretrained(base)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    add_adapters(model, AdapterConfig(type="lora", r=2))
    return disturbed(model)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change the values of a JSON file."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a file, and nothing else of it."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)
