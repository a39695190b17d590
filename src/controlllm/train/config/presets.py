"""Presets: bundles of defaults that belong together. Every value can be overridden.

A preset is a nested dict in the shape of a run file. It says only what makes the method; what
depends on the model (`num_blocks`), the data or the hardware (`bf16`, batch sizes) is
left alone.
"""

import copy
from typing import Any

from controlllm.common.registry import check_choice

__all__ = ["PRESETS", "preset_values"]

_PAPER = {
    # The SFT settings of arXiv 2501.10979: docs/method.md §8.
    "method": "control",
    "expansion": {
        "structure": "concat",
        "interpolator": "lerp",
        "alpha": 0.5,
        "train_alpha": False,
        "divergence": "mse",
        "divergence_weight": 1.0,
    },
    "training": {
        "learning_rate": 5e-5,
        "min_lr_rate": 0.2,
        "warmup_steps": 1000,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    },
}

_RETAIN = {
    # docs/method.md §9: at a small budget of forgetting the relative divergence (nmse 0.3)
    # learned a little more than none (GSM8K 2.183 at +0.043; none, between its two nearest points,
    # 2.20), and it is the row that was measured with a second seed.
    "method": "control",
    "expansion": {
        "structure": "concat",
        "interpolator": "lerp",
        "alpha": 0.5,
        "train_alpha": False,
        "divergence": "nmse",
        "divergence_weight": 0.3,
        "expand_ends": True,
    },
    "rehearsal": {"num_sequences": 256, "share": 0.125, "loss": "kl", "weight": 1.0},
    "training": {"alpha_sampling": [0.2, 0.8]},
}

_SIDECAR: dict[str, Any] = {
    # docs/results/sidecar-preset.md: copies that learn at the small alphas where the dial will
    # stand learn far more there, held to the base by more rehearsal and by no divergence. They move
    # far from their twins, so what is mixed is outputs: their weights are not worth merging.
    "method": "control",
    "expansion": {
        "structure": "concat",
        "interpolator": "lerp",
        "alpha": 0.15,
        "train_alpha": False,
        "divergence": "none",
        "expand_ends": True,
    },
    "rehearsal": {"num_sequences": 256, "share": 0.25, "loss": "kl", "weight": 3.0},
    "training": {"alpha_sampling": [0.05, 0.25]},
}

_PLAIN = {
    # docs/results/retention-study.md: without copies, the same rehearsal keeps most of what they do
    # on a real chat model, once tuned and base are averaged within the budget.
    "method": "full",
    "rehearsal": _SIDECAR["rehearsal"],
}

_ADAPTER = {
    # docs/results/retention-study.md: so held, LoRA learned nearly as much as full tuning on a real
    # chat model and moved it least; on a small base that learns plain text it did not.
    "method": "lora",
    "peft": {"r": 16},
    "rehearsal": _SIDECAR["rehearsal"],
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "retain": _RETAIN,
    "sidecar": _SIDECAR,
    "plain": _PLAIN,
    "adapter": _ADAPTER,
}
"""All presets by name."""


def preset_values(name: str) -> dict[str, Any]:
    """The values of a preset as a fresh nested dict, to be parsed *before* the user's own values.

    Raises:
        ConfigError: if there is no such preset, with the nearest name.
    """
    check_choice("preset", name, PRESETS)
    return {"preset": name, **copy.deepcopy(PRESETS[name])}
