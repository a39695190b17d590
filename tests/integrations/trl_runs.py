"""What the tests of TRL's trainers share: a base on disk, expanded models of it, short runs."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, GRPOConfig, KTOConfig, RLOOConfig, SFTConfig

from controlllm import expand
from controlllm.expansion import ControlLLMForCausalLM

__all__ = [
    "LR",
    "MARKED",
    "PAIRS",
    "PROMPTS",
    "TEXTS",
    "assert_same",
    "dpo_config",
    "expanded",
    "grpo_config",
    "kto_config",
    "letters",
    "load_base",
    "losses",
    "rloo_config",
    "settings",
    "sft_config",
    "trained",
]

LR = 0.5

PAIRS = Dataset.from_list(
    [
        {
            "prompt": f"{i}+{i}=" + " " * (i % 3),
            "chosen": str(2 * i) * (1 + i % 3),
            "rejected": "no",
        }
        for i in range(12)
    ]
)
"""Prompts and answers of several lengths, so that every batch has padding."""

MARKED = Dataset.from_list(
    [
        {"prompt": f"{i}+{i}=", "completion": str(2 * i) * (1 + i % 3), "label": i % 3 > 0}
        for i in range(12)
    ]
)
"""Answers that are good or bad, for KTO."""

TEXTS = Dataset.from_list([{"text": "to be " * (1 + i % 4) + str(i)} for i in range(10)])

PROMPTS = Dataset.from_list([{"prompt": "ab" * (1 + i % 3) + str(i)} for i in range(12)])


def load_base(folder: Any) -> Any:
    """The base, as users load it: its config knows where it came from."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def expanded(folder: Any, weight: float = 1.0, **options: Any) -> ControlLLMForCausalLM:
    """An expanded model whose branches differ: it is not the base, and the divergence pulls."""
    model = expand(load_base(folder), num_blocks=2, divergence_weight=weight, **options)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for block in model.blocks.values():
            for parameter in block.expanded.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def settings(output_dir: Any, accumulation: int = 1, **options: Any) -> dict[str, Any]:
    """Plain SGD on rows in their order, on CPU in float32."""
    return {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 4 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 3,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    } | options


def sft_config(output_dir: Any, accumulation: int = 1, **options: Any) -> SFTConfig:
    options = {"train_sampling_strategy": "sequential"} | options
    return SFTConfig(**settings(output_dir, accumulation, **options))


def dpo_config(output_dir: Any, accumulation: int = 1, **options: Any) -> DPOConfig:
    options = {"train_sampling_strategy": "sequential", "beta": 0.3} | options
    return DPOConfig(**settings(output_dir, accumulation, **options))


def grpo_config(output_dir: Any, accumulation: int = 1, **options: Any) -> GRPOConfig:
    """Two answers to each prompt."""
    chosen: dict[str, Any] = {
        "beta": 0.3,
        "num_generations": 2,
        "max_completion_length": 8,
        "loss_type": "grpo",
    }
    return GRPOConfig(**settings(output_dir, accumulation, **chosen | options))


def kto_config(output_dir: Any, accumulation: int = 1, **options: Any) -> KTOConfig:
    options = {"train_sampling_strategy": "sequential", "beta": 0.3} | options
    return KTOConfig(**settings(output_dir, accumulation, **options))


def rloo_config(output_dir: Any, accumulation: int = 1, **options: Any) -> RLOOConfig:
    """Two answers to each prompt."""
    chosen = {"beta": 0.3, "num_generations": 2, "max_completion_length": 8}
    return RLOOConfig(**settings(output_dir, accumulation, **chosen | options))


def letters(completions: Sequence[str], **columns: Any) -> list[float]:
    """A reward: the share of letters in an answer."""
    return [sum(map(str.isalpha, text)) / max(len(text), 1) for text in completions]


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def assert_same(ours: Any, theirs: Any, exact: bool = False) -> None:
    """Both models have the same trained weights."""
    ours, theirs = trained(ours), trained(theirs)
    assert ours.keys() == theirs.keys()
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], **tolerance, msg=name)


def losses(trainer: Any) -> list[dict[str, float]]:
    """What a trainer logged at each step, without clocks."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [{k: v for k, v in row.items() if "time" not in k} for row in rows]
