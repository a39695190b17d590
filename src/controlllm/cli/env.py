"""`controlllm env`: what a bug report needs to say about the machine."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import controlllm
from controlllm.cli.kit.parsing import parse_options

__all__ = ["EnvOptions", "environment", "run"]

_NEEDED = ("torch", "transformers", "accelerate", "safetensors", "jsonargparse")
_OPTIONAL = ("datasets", "lm-eval", "peft", "trl", "tensorboard", "wandb", "flash-attn")


@dataclass
class EnvOptions:
    """Print versions, devices and attention implementations, for bug reports."""


def run(argv: list[str]) -> None:
    """Print one line per fact."""
    parse_options(EnvOptions, argv, "env", models=False)
    facts = environment()
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))


def environment() -> dict[str, str]:
    """Facts about this machine and its packages, by name."""
    facts = {
        "controlllm": controlllm.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    facts |= {name: _version(name) for name in (*_NEEDED, *_OPTIONAL)}
    return facts | _devices()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    import torch
    from transformers import AttentionInterface

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "gpus": ", ".join(gpus) or "none",
        "cuda": str(torch.version.cuda or "none"),
        "bf16 on gpu": str(torch.cuda.is_available() and torch.cuda.is_bf16_supported()),
        "attention": ", ".join(sorted({"eager", *AttentionInterface().valid_keys()})),
    }
