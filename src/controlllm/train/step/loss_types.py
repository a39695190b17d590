"""Types of loss: what the cross-entropy of a target is multiplied by.

N positions that predict a target, V tokens; p = softmax of a position's logits, y = its target.

| `training.loss_type` | weight |
|---|---|
| `ce` | 1 |
| `dft` | p(y): what the model finds unlikely pulls less |
| `eaft` | H / ln K, H = entropy of the K = 20 likeliest tokens among themselves |

Weights have no gradient. Sources: `dft` is dynamic fine-tuning (arXiv 2508.05629); `eaft` is
entropy-adaptive fine-tuning (arXiv 2601.02151): where a model is sure of another token than the
target, in a "confident conflict", learning the target is what makes it forget.

A new one is one more function under `@LOSS_TYPES.register("name")`: docs/extending/loss.md.
"""

import math

import torch
from torch import Tensor

from controlllm.train.config.registries import LOSS_TYPES

__all__ = ["LOSS_TYPES"]

_LIKELIEST = 20

LOSS_TYPES.register("ce")(None)


@LOSS_TYPES.register("dft")
def _dft(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    of_target_N = logits_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    return (of_target_N - logits_NV.logsumexp(-1)).exp()


@LOSS_TYPES.register("eaft")
def _eaft(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    likeliest = min(_LIKELIEST, logits_NV.shape[-1])
    among_NK = logits_NV.topk(likeliest, sorted=False).values.log_softmax(-1)
    return torch.special.entr(among_NK.exp()).sum(-1) / math.log(likeliest)
