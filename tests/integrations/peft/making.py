"""Tiny bases with trained adapters of several kinds."""

import warnings
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from tests.laws.architectures import make_base
from tests.laws.models import batch, settings_of

from controlllm.integrations.peft import ControlLLMPeftConfig

__all__ = ["add_trained", "make_adapted", "make_two", "step", "stir"]


def make_adapted(name: str = "llama", variant: str = "concat", **settings: Any) -> PeftModel:
    """An untrained adapter on a fresh base."""
    config = ControlLLMPeftConfig(**settings_of(variant) | settings)
    adapter_name = "default"
    return get_peft_model(make_base(name), config, adapter_name).eval()


def stir(model: PeftModel, name: str, seed: int = 3) -> None:
    """Move an adapter's tensors off their start; equal seeds give equal tensors."""
    from controlllm.integrations.peft import adapters_of

    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for tensor in adapters_of(model).named[name].tensors().values():
            tensor.add_(0.1 * torch.randn_like(tensor))


def add_trained(model: PeftModel, name: str, seed: int, **settings: Any) -> None:
    """Add an adapter that differs from its start; which one is active stays as it is."""
    model.add_adapter(name, ControlLLMPeftConfig(**settings))
    stir(model, name, seed)


def make_two(base: str = "llama", other: dict[str, Any] | None = None) -> PeftModel:
    """A base with the adapters `maths` (active) and `code`, both off their start."""
    config = ControlLLMPeftConfig(num_blocks=2)
    model = get_peft_model(make_base(base), config, "maths").eval()
    stir(model, "maths", seed=3)
    add_trained(model, "code", seed=4, **other or {"num_blocks": 2})
    return model.eval()


def step(model: Any, lr: float = 0.05) -> None:
    """One step of SGD on the batch, through the loss that the model gives."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    model(**batch()).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
