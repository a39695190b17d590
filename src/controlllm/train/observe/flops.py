"""How many floating-point operations a training step takes, counted for what is really computed.

| what | forward | gradient of its input | of its weights |
|---|---|---|---|
| a matrix of N numbers, each token | 2N | 2N, if something below it trains | 2N, if it trains |
| attention, each pair of tokens | 2 (key + value width) | twice that, likewise | |
| embedding (a look-up), norms, elementwise | 0 | 0 | 0 |

So frozen blocks below the first expanded one have no backward pass at all, and those above it half
of one. `extra` is what the hardware computes a second time: blocks under activation checkpointing,
and attention scores in the backward pass of fused kernels. *Model* FLOPs (MFU) leave it out,
*hardware* FLOPs (HFU) count it.

Conventions, those of PaLM (arXiv 2204.02311, appendix B) and of `torch.utils.flop_counter`: a
multiply-add is two operations; attention is counted over the whole square of a document though half
of it is masked, but never across documents, nor beyond a sliding window.

Counts that are not exact: a block without a norm before its attention (OLMo 2) gives no gradient to
the input of its first three matrices where nothing below it trains, which is counted; a block that
is computed again stops before its last matrix, which is counted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["FlopCount", "Flops", "Part", "sequence_lengths"]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, by when they are computed."""

    forward: float = 0.0  # of the forward pass
    backward: float = 0.0  # of the backward pass
    extra: float = 0.0  # of what is computed a second time in the backward pass

    @property
    def model(self) -> float:
        """What the mathematics needs (MFU)."""
        return self.forward + self.backward

    @property
    def hardware(self) -> float:
        """What is computed (HFU)."""
        return self.model + self.extra

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.forward + other.forward, self.backward + other.backward, self.extra + other.extra
        )

    def __mul__(self, times: float) -> "Flops":
        return Flops(self.forward * times, self.backward * times, self.extra * times)


@dataclass(frozen=True)
class Part:
    """What one part of a model computes."""

    name: str  # where it is, for people
    matrices: float  # numbers in its matrices that each token is multiplied with
    trained: float  # how many of them train
    keys: int = 0  # width of queries and keys over all heads; 0 without attention
    values: int = 0  # width of values over all heads
    window: int | None = None  # the most tokens that one attends to; None = all of its document
    passes: bool = False  # whether its matrices give gradients to their inputs
    again: bool = False  # whether it is computed a second time in the backward pass
    scores_again: bool = False  # whether its attention scores are (fused kernels)
    of_base: bool = True  # whether the base has it, too
    is_head: bool = False  # whether it is the LM head, which may see fewer tokens

    def per_token(self) -> Flops:
        """Of the matrices, for each token."""
        backward = 2 * self.trained + 2 * self.matrices * self.passes
        again = self.again and backward > 0
        return Flops(2 * self.matrices, backward, 2 * self.matrices * again)

    def per_pair(self) -> Flops:
        """Of the attention, for each pair of tokens."""
        forward = 2 * (self.keys + self.values)
        backward = 2 * forward * self.passes
        scores = 2 * self.keys * (self.passes and self.scores_again)
        return Flops(forward, backward, forward * (self.again and self.passes) + scores)


class FlopCount:
    """Counts batches of a model that computes such parts (`model_parts.parts_of`)."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self.per_token, self.per_prediction = Flops(), Flops()
        self.per_pair: dict[int | None, Flops] = {}
        for part in parts:
            if part.is_head:
                self.per_prediction += part.per_token()
            else:
                self.per_token += part.per_token()
            if part.keys:
                before = self.per_pair.get(part.window, Flops())
                self.per_pair[part.window] = before + part.per_pair()

    def of(self, lengths: Tensor, predictions: int | None = None) -> Flops:
        """One forward and backward pass.

        Args:
            lengths: tokens of each document (`sequence_lengths`).
            predictions: tokens that the LM head sees; None = all.
        """
        tokens = int(lengths.sum())
        flops = self.per_token * tokens
        flops += self.per_prediction * (tokens if predictions is None else predictions)
        for window, each in self.per_pair.items():
            seen = lengths if window is None else lengths.clamp(max=window)
            flops += each * float((lengths * seen).sum())
        return flops


def sequence_lengths(batch: Mapping[str, Any]) -> Tensor:
    """Tokens of each document of a batch (int64), padding included: it is computed, too."""
    starts = batch.get("cu_seq_lens_q")
    if starts is not None:
        return starts.diff().long()
    rows, length = batch["input_ids"].shape
    return torch.full((rows,), length, dtype=torch.long)
