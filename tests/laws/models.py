"""Expanded models of every architecture, trained a little, and the batch they are checked on."""

import copy
from functools import cache
from typing import Any

import torch
from tests.laws.architectures import ARCHITECTURES, VOCAB, make_base
from torch import Tensor

from controlllm import ControlLLMForCausalLM, expand

__all__ = [
    "INTERPOLATORS",
    "MATRIX",
    "VARIANTS",
    "base_logits",
    "batch",
    "greedy",
    "logits",
    "make_expanded",
    "make_trained",
    "prompts",
    "train",
]

VARIANTS: dict[str, dict[str, Any]] = {
    "concat": {"structure": "concat", "num_blocks": 2},
    "stack": {"structure": "stack", "num_blocks": 2},
    "hybrid": {"structure": "hybrid", "num_blocks": 2},
    "ends": {"structure": "concat", "num_blocks": 2, "expand_ends": True},
}
INTERPOLATORS = ("lerp", "dlerp", "dlerpin", "slerp", "moe", "prog", "proj")
MATRIX = [(name, variant) for name in ARCHITECTURES for variant in VARIANTS] + [
    ("llama", interpolator) for interpolator in INTERPOLATORS
]
"""Every architecture in every structure, and every interpolator on one architecture."""


def settings_of(variant: str) -> dict[str, Any]:
    """The expansion of a variant, or of an interpolator by its name."""
    if variant in VARIANTS:
        return VARIANTS[variant]
    return {"num_blocks": 2, "interpolator": variant}


def make_expanded(name: str, variant: str = "concat", **base: Any) -> ControlLLMForCausalLM:
    """A fresh, untrained expanded model."""
    return expand(make_base(name, **base), **settings_of(variant))


@cache
def _trained(name: str, variant: str) -> ControlLLMForCausalLM:
    return train(make_expanded(name, variant))


def make_trained(name: str, variant: str = "concat") -> ControlLLMForCausalLM:
    """A trained expanded model, the caller's own to change."""
    return copy.deepcopy(_trained(name, variant))


def train(model: ControlLLMForCausalLM, steps: int = 2) -> ControlLLMForCausalLM:
    """A bare loop: two large steps on the batch, so that nothing is left at its start."""
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.03, weight_decay=0.1)
    for _ in range(steps):
        model(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def batch() -> dict[str, Tensor]:
    """Two rows of 10 tokens, the second padded on the right."""
    ids = torch.randint(3, VOCAB, (2, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    ids[1, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def prompts() -> Tensor:
    """Two prompts of 6 tokens."""
    return torch.randint(3, VOCAB, (2, 6), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Logits on the batch's tokens, all of them real."""
    return model(input_ids=batch()["input_ids"].to(model.device)).logits


@cache
def base_logits(name: str) -> Tensor:
    """The base's logits on the batch's tokens."""
    return logits(make_base(name))


def greedy(model: Any, **settings: Any) -> Tensor:
    """Eight greedy tokens after the prompts (past any sliding window), with prompts."""
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(prompts(), **options | settings)
