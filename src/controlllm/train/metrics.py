"""The names of all metrics, written once, and how reports become metrics.

| name | what |
|---|---|
| `train/loss` | what was trained on: the sum of the next three |
| `train/cross_entropy`, `train/divergence`, `train/rehearsal` | as they enter the loss |
| `train/divergence/layer_{l}` | unweighted, per token |
| `train/alpha/layer_{l}` | mean alpha, at the nominal setting |
| `train/learning_rate` | of the last step |
| `train/grad_norm` | before clipping |
| `train/tokens`, `train/tokens_per_second` | real tokens since the start; throughput of the steps |
| `train/packing_efficiency` | real tokens as a share of all that were computed |
| `train/memory_gib` | peak so far |
| `learn/{set}/loss`, `/base_loss`, `/gain` | nats per target token; gain = base_loss - loss |
| `retain/{set}/loss`, `/base_loss`, `/forgetting` | the same; forgetting = loss - base_loss |
| `retain/{set}/kl` | KL(base ‖ model) in nats per target token |

Losses, divergences and gradient norms are means over the steps since the last record.
"""

import resource
import sys
from collections.abc import Mapping

import torch

from controlllm.evaluate import RetentionReport

__all__ = [
    "ALPHA_LAYER",
    "CROSS_ENTROPY",
    "DIVERGENCE",
    "DIVERGENCE_LAYER",
    "GRAD_NORM",
    "LEARNING_RATE",
    "LOSS",
    "MEMORY",
    "PACKING_EFFICIENCY",
    "REHEARSAL",
    "TOKENS",
    "TOKENS_PER_SECOND",
    "learn_metrics",
    "peak_memory_gib",
    "retain_metrics",
]

LOSS = "train/loss"
CROSS_ENTROPY = "train/cross_entropy"
DIVERGENCE = "train/divergence"
REHEARSAL = "train/rehearsal"
DIVERGENCE_LAYER = "train/divergence/layer_{}"
ALPHA_LAYER = "train/alpha/layer_{}"
LEARNING_RATE = "train/learning_rate"
GRAD_NORM = "train/grad_norm"
TOKENS = "train/tokens"
TOKENS_PER_SECOND = "train/tokens_per_second"
PACKING_EFFICIENCY = "train/packing_efficiency"
MEMORY = "train/memory_gib"


def learn_metrics(reports: Mapping[str, RetentionReport]) -> dict[str, float]:
    """What the sets to be learned say."""
    metrics = {}
    for name, report in reports.items():
        metrics[f"learn/{name}/loss"] = report.loss
        metrics[f"learn/{name}/base_loss"] = report.base_loss
        metrics[f"learn/{name}/gain"] = report.gain
    return metrics


def retain_metrics(reports: Mapping[str, RetentionReport]) -> dict[str, float]:
    """What the sets to be retained say."""
    metrics = {}
    for name, report in reports.items():
        metrics[f"retain/{name}/loss"] = report.loss
        metrics[f"retain/{name}/base_loss"] = report.base_loss
        metrics[f"retain/{name}/forgetting"] = report.forgetting
        metrics[f"retain/{name}/kl"] = report.kl
    return metrics


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of the GPU, or of this process on a CPU, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
