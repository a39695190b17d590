"""The names of all metrics, written once, and how reports become metrics.

| name | what |
|---|---|
| `train/loss` | what was trained on: the sum of the next four |
| `train/cross_entropy`, `train/divergence`, `train/rehearsal` | as they enter the loss, the |
| | first weighted by `training.loss_type` |
| `train/anchor` | method `kl`: KL(base ‖ model) on what is learned, times its weight |
| `train/divergence/layer_{l}` | unweighted, per token |
| `train/alpha/layer_{l}` | mean alpha, at the nominal setting |
| `train/learning_rate` | of the last step |
| `train/grad_norm` | before clipping |
| `train/tokens`, `train/tokens_per_second` | real tokens since the start; throughput of the steps |
| `train/packing_efficiency` | real tokens as a share of all that were computed |
| `train/step_seconds` | seconds of a step, of the slowest process |
| `train/step_seconds/{phase}` | of them, by data (waiting for it), forward, backward, optimizer |
| | (with clipping) and communication (what is not hidden behind those) |
| `train/mfu`, `train/hfu` | share of the devices' peak rate: FLOPs that are needed, or computed |
| `train/tflops` | needed FLOPs per second and process, in 10^12 |
| `train/memory_gib` | peak so far |
| `train/memory_allocated_gib` | now; on a CPU what is resident |
| `train/memory_reserved_gib` | what torch holds of a GPU now |
| `learn/{set}/loss`, `/base_loss`, `/gain` | nats per target token; gain = base_loss - loss |
| `retain/{set}/loss`, `/base_loss`, `/forgetting` | the same; forgetting = loss - base_loss |
| `retain/{set}/kl` | KL(base ‖ model) in nats per target token |
| `retain/own_text/kl_upper` | its 95 % upper bound, on what the base wrote (docs/certificate.md) |
| `retain/{stage}/{set}/...` | of a set that an earlier run learned: beside that run, not the base |
| `.../loss_at_{stage}` | where a run goes on from others: what each of them had on a set |
| `probe/{set}/relative_change/layer_{l}` | `logging.probes`: mean of |e - p| / |p| over a batch |
| `probe/{set}/cosine/layer_{l}`, `/alpha/layer_{l}` | the same of cos(p, e) and of alpha |
| `generation/{set}/{name}` | of what the model writes, by `evaluation.generation.metrics` |
| `generation/{set}/base_{name}` | the same of what the base wrote, for the same rows |
| `generation/{set}/cut_off`, `base_cut_off` | share of texts that `max_new_tokens` ended |
| `generation/{set}/rows` | how many rows were scored |
| `benchmarks/{name}/{reading}` | of the model, by `evaluation.suite`: strict, choice, ... |
| `benchmarks/{name}/base_{reading}` | the same of the base |
| `benchmarks/{name}/rows` | how many questions were asked |

Losses, divergences, gradient norms and times are means over the steps since the last record: losses
and divergences over the tokens of all processes, times over processes. Memory is the largest of any
process.
"""

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from controlllm.common.errors import ConfigError
from controlllm.evaluate import RetentionReport
from controlllm.evaluate.own_text import certificates
from controlllm.evaluate.texts import Compared

__all__ = [
    "ALPHA_LAYER",
    "CROSS_ENTROPY",
    "DIVERGENCE",
    "DIVERGENCE_LAYER",
    "GRAD_NORM",
    "HFU",
    "LEARNING_RATE",
    "LOSS",
    "MEMORY",
    "MEMORY_ALLOCATED",
    "MEMORY_RESERVED",
    "MFU",
    "PACKING_EFFICIENCY",
    "PHASE_SECONDS",
    "REHEARSAL",
    "STEP_SECONDS",
    "TFLOPS",
    "TOKENS",
    "TOKENS_PER_SECOND",
    "generation_metrics",
    "is_of_the_machine",
    "memory_gib",
    "probe_metrics",
    "set_metrics",
    "stage_metrics",
]

LOSS = "train/loss"
CROSS_ENTROPY = "train/cross_entropy"
DIVERGENCE = "train/divergence"
REHEARSAL = "train/rehearsal"
ANCHOR = "train/anchor"
DIVERGENCE_LAYER = "train/divergence/layer_{}"
ALPHA_LAYER = "train/alpha/layer_{}"
LEARNING_RATE = "train/learning_rate"
GRAD_NORM = "train/grad_norm"
TOKENS = "train/tokens"
TOKENS_PER_SECOND = "train/tokens_per_second"
PACKING_EFFICIENCY = "train/packing_efficiency"
STEP_SECONDS = "train/step_seconds"
PHASE_SECONDS = "train/step_seconds/{}"
MFU = "train/mfu"
HFU = "train/hfu"
TFLOPS = "train/tflops"
MEMORY = "train/memory_gib"
MEMORY_ALLOCATED = "train/memory_allocated_gib"
MEMORY_RESERVED = "train/memory_reserved_gib"

_OF_THE_MACHINE = ("train/memory", STEP_SECONDS, TOKENS_PER_SECOND, MFU, HFU, TFLOPS)


def is_of_the_machine(name: str) -> bool:
    """Whether the machine decides a metric, so that the same run gives another value each time."""
    return name.startswith(_OF_THE_MACHINE)


_OF_SETS = {
    "learn": ("loss", "base_loss", "gain"),
    "retain": ("loss", "base_loss", "forgetting", "kl"),
}


def set_metrics(kind: str, reports: Mapping[str, RetentionReport]) -> dict[str, float]:
    """Metrics of the `learn` or `retain` sets."""
    metrics = {
        f"{kind}/{name}/{what}": getattr(report, what)
        for name, report in reports.items()
        for what in _OF_SETS[kind]
    }
    if kind == "retain":
        found = certificates(reports).items()
        metrics |= {f"{kind}/{name}/kl_upper": one.upper for name, one in found}
    return metrics


def stage_metrics(name: str, losses: Mapping[str, float]) -> dict[str, float]:
    """Metrics of what the stages before have on a set (`learn/x`)."""
    return {f"{name}/loss_at_{stage}": loss for stage, loss in losses.items()}


def generation_metrics(name: str, rows: int, compared: Sequence[Compared]) -> dict[str, float]:
    """Metrics of the texts that were written for a set.

    Raises:
        ConfigError: a metric gives a number by a name that is taken.
    """
    begin = f"generation/{name}"
    metrics = {f"{begin}/rows": float(rows)}
    for one in compared:
        for key, value in ((one.name, one.tuned), (f"base_{one.name}", one.base)):
            if f"{begin}/{key}" in metrics:
                raise ConfigError(
                    f"a metric gives a number called {one.name!r}, and {begin}/{key} is there "
                    "already; rename it."
                )
            metrics[f"{begin}/{key}"] = value
    return metrics


def probe_metrics(name: str, scalars: Mapping[str, float]) -> dict[str, float]:
    """Metrics of how far the branches are apart on a set."""
    return {f"probe/{name}/{key}": value for key, value in scalars.items()}


def memory_gib(device: torch.device) -> dict[str, float]:
    """Memory of the GPU, or of this process on a CPU, in GiB, by the names of the metrics."""
    if device.type == "cuda":
        sizes = {
            MEMORY: torch.cuda.max_memory_allocated(device),
            MEMORY_ALLOCATED: torch.cuda.memory_allocated(device),
            MEMORY_RESERVED: torch.cuda.memory_reserved(device),
        }
        return {name: size / 2**30 for name, size in sizes.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_gib = peak / (2**30 if sys.platform == "darwin" else 2**20)
    return {MEMORY: peak_gib, MEMORY_ALLOCATED: _resident_gib() or peak_gib}


def _resident_gib() -> float | None:
    """What this process holds in memory now; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * resource.getpagesize() / 2**30
