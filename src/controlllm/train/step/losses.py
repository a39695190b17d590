"""One optimizer step's loss, the same for every back end.

    loss = CE_sum / targets  +  weighted divergence_sum / tokens  +  weight * KL_sum / rehearsed
                             [+  weight * KL_sum / targets]

Each sum runs over the whole accumulated batch and is divided once by its count there. The counts
are taken over all micro-batches of all processes *before* the first one runs, so a micro-batch's
loss is its share of the step's loss, shares add up, and neither accumulation, nor the number of
processes, nor how rows are cut into batches changes anything.

| term | which positions |
|---|---|
| cross-entropy | that predict a target of a training or replay row (rehearsal loss `ce`: any row) |
| divergence | all real tokens, or those that predict a target (`expansion.divergence_tokens`) |
| rehearsal | that predict a target of a rehearsed row, under `kl`: KL(base ‖ model) |
| anchor (method `kl`) | those of the cross-entropy: KL(base ‖ model) |

A type of loss (`loss_types`) multiplies each cross-entropy by a weight; the count stays that of the
targets, so that tokens of little weight pull less, and others no more.

Shapes: B batch, T tokens, V vocabulary.
"""

import copy
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from controlllm.common.losses import (
    IGNORE_INDEX,
    cross_entropy_sum,
    kl_sum,
    target_mask,
    token_mask,
    weighted_cross_entropy_sum,
)
from controlllm.data import REHEARSAL, model_inputs
from controlllm.evaluate import Reference, evaluating
from controlllm.expansion import ControlLLMForCausalLM
from controlllm.expansion.method.terms import DivergenceTerms
from controlllm.train.config.method_config import KLConfig
from controlllm.train.parallel import World
from controlllm.train.step.head import (
    HeadInputs,
    Weigh,
    chunked_cross_entropy_sum,
    chunked_kl_sum,
    head_inputs,
    hidden_states_of,
)
from controlllm.train.step.liger import fused_chunk, fused_cross_entropy_sum
from controlllm.train.step.rows import rows_of_origin

K = TypeVar("K")

__all__ = ["Counts", "StepLoss", "StepReport", "collected_divergence"]


@dataclass(frozen=True)
class Counts:
    """What the sums of one optimizer step are divided by."""

    targets: int = 0  # positions with a cross-entropy
    tokens: int = 0  # positions with a divergence
    rehearsed: int = 0  # positions with a rehearsal KL
    real: int = 0  # tokens that are no padding, for throughput and budgets
    positions: int = 0  # all that the model computes, padding included

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def over(self, world: World) -> "Counts":
        """The counts of all processes together. Collective."""
        return Counts(*map(int, world.sum(astuple(self))))


@dataclass
class StepReport:
    """What one optimizer step measured; the losses are already divided by their global counts."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    """cross_entropy, divergence, anchor, rehearsal (0-dim tensors on the device)."""
    divergence: dict[int, Tensor] = field(default_factory=dict)
    """Unweighted divergence per expanded layer."""
    tokens: int = 0  # real tokens seen
    positions: int = 0  # tokens computed, padding included

    @classmethod
    def of(cls, counts: Counts) -> "StepReport":
        """A report on a step of which only the counts are known."""
        return cls(tokens=counts.real, positions=counts.positions)

    def over(self, world: World) -> "StepReport":
        """What all processes measured together, each having its share. Collective."""
        if world.size == 1:
            return self
        parts = [*self.losses.values(), *self.divergence.values()]
        sums = [torch.tensor(value) for value in world.sum([part.item() for part in parts])]
        losses = dict(zip(self.losses, sums, strict=False))
        divergence = dict(zip(self.divergence, sums[len(losses) :], strict=True))
        return replace(self, losses=losses, divergence=divergence)

    @property
    def total(self) -> Tensor:
        """The loss that was trained on."""
        return torch.stack(list(self.losses.values())).sum()


def _add_up(sums: dict[K, Tensor], values: Mapping[K, Tensor]) -> None:
    for key, value in values.items():
        sums[key] = sums[key] + value if key in sums else value


class StepLoss:
    """Computes micro-batch losses and counts.

    Args:
        model: what trains.
        reference: its base, asked for the KLs.
        rehearsal_weight: weight of the rehearsal KL; None = rehearsed rows are ordinary rows.
        chunk: positions whose logits exist at a time; None = all.
        anchor: the pull to the base on the tokens that are learned; None = none. Not with `chunk`,
            nor `fused`.
        fused: head and cross-entropy are one kernel of Liger. Not with `weigh`.
        weigh: the weights of the cross-entropies (`loss_types`); None = all are 1.
        together: processes gather each other's parts of the weights, so all compute the base in a
            micro-batch, or none.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: Reference | None,
        rehearsal_weight: float | None = None,
        chunk: int | None = None,
        anchor: KLConfig | None = None,
        fused: bool = False,
        weigh: Weigh | None = None,
        together: bool = False,
    ) -> None:
        self.model, self.reference, self.rehearsal_weight = model, reference, rehearsal_weight
        self.chunk, self.anchor, self.fused, self.weigh = chunk, anchor, fused, weigh
        self.together = together
        self.caller: nn.Module = model
        """What is called instead of the model: an engine that wraps it, say."""

    def called_by(self, engine: nn.Module) -> "StepLoss":
        """The same loss, where an engine that wraps the model is called instead of it."""
        wrapped = copy.copy(self)
        wrapped.caller = engine
        return wrapped

    @property
    def in_parts(self) -> bool:
        """Whether the model gives hidden states, and the loss applies the head."""
        return self.fused or self.chunk is not None

    def count(self, batches: Iterable[Mapping[str, Any]]) -> Counts:
        """The global counts of one accumulated batch."""
        return sum((self._count_one(batch) for batch in batches), Counts())

    def micro_batch(
        self, batch: Mapping[str, Any], counts: Counts, report: StepReport | None = None
    ) -> Tensor:
        """This micro-batch's share of the step's loss, with its graph.

        Args:
            batch: one micro-batch on the model's device.
            counts: the counts of the *whole* accumulated batch.
            report: where the parts are added up, detached.
        """
        with collected_divergence(self.model) as terms:
            output = self._forward(_without_labels(batch))
        losses = {"cross_entropy": self._cross_entropy(output, batch, counts)}
        divergence: dict[int, Tensor] = {}
        if terms is not None and terms.values:
            mask_BT = self._divergence_mask(batch)
            losses["divergence"] = terms.total(mask_BT)[0] / max(counts.tokens, 1)
            blocks = terms.per_block(mask_BT)
            divergence = {layer: s / max(counts.tokens, 1) for layer, (s, _) in blocks.items()}
        if self.anchor is not None:
            # The base computes the whole batch.
            total, _ = kl_sum(self._base_logits(batch), output, self._task_labels(batch))
            losses["anchor"] = self.anchor.weight * total / max(counts.targets, 1)
        if counts.rehearsed:
            losses["rehearsal"] = self._rehearsal(output, batch, counts)
        if report is not None:
            _add_up(report.losses, {name: loss.detach() for name, loss in losses.items()})
            _add_up(report.divergence, divergence)
        return torch.stack(list(losses.values())).sum()

    def _forward(self, inputs: dict[str, Any]) -> Tensor:
        """Logits (B, T, V); where they come in chunks, what the head makes them of (B, T, D)."""
        if self.in_parts:
            return hidden_states_of(cast(PreTrainedModel, self.model), inputs, self.caller)
        logits_BTV: Tensor = self.caller(**inputs).logits
        return logits_BTV

    def _count_one(self, batch: Mapping[str, Any]) -> Counts:
        labels_BT = batch["labels"]
        task_BT = self._task_labels(batch)
        targets = int(target_mask(task_BT).sum())
        return Counts(
            targets=targets,
            tokens=int(self._divergence_mask(batch).sum()),
            rehearsed=int(target_mask(labels_BT).sum()) - targets,
            real=int((batch["origin"] >= 0).sum()),
            positions=batch["origin"].numel(),
        )

    def _task_labels(self, batch: Mapping[str, Any]) -> Tensor:
        """The labels that cross-entropy sees (B, T)."""
        labels_BT: Tensor = batch["labels"]
        if self.rehearsal_weight is None:
            return labels_BT
        return labels_BT.masked_fill(batch["origin"] == REHEARSAL, IGNORE_INDEX)

    def _divergence_mask(self, batch: Mapping[str, Any]) -> Tensor:
        """Positions whose divergence counts (B, T bool)."""
        if isinstance(self.model, ControlLLMForCausalLM):
            which = self.model.expansion.divergence_tokens
            if which == "target":
                return token_mask(batch, which)
        mask: Tensor = batch["origin"] >= 0
        return mask

    def _cross_entropy(self, output: Tensor, batch: Mapping[str, Any], counts: Counts) -> Tensor:
        labels_BT = self._task_labels(batch)
        model = cast(PreTrainedModel, self.model)
        if self.fused:
            total = fused_cross_entropy_sum(output, model, labels_BT)
        elif self.chunk is not None:
            total = chunked_cross_entropy_sum(output, model, labels_BT, self.chunk, self.weigh)
        elif self.weigh is not None:
            total = weighted_cross_entropy_sum(output, labels_BT, self.weigh)
        else:
            total, _ = cross_entropy_sum(output, labels_BT)
        return total / max(counts.targets, 1)

    def _base_logits(self, batch: Mapping[str, Any]) -> Tensor:
        """What the base predicts (B, T, V)."""
        assert self.reference is not None
        return self.reference.forward(**_without_labels(batch))

    def _base_head(self, batch: Mapping[str, Any]) -> HeadInputs:
        """What the base's head makes its predictions of."""
        assert self.reference is not None
        with self.reference.active() as module, evaluating(module):
            base = cast(PreTrainedModel, module)
            return head_inputs(
                hidden_states_of(base, _without_labels(batch)), base, batch["labels"]
            )

    def _rehearsal(self, output: Tensor, batch: Mapping[str, Any], counts: Counts) -> Tensor:
        """Weighted KL(base ‖ model); the base computes the rehearsed rows only."""
        rows = rows_of_origin(batch, REHEARSAL)
        if rows is None:
            if self.together:  # Another process may have such rows: its weights are gathered, too.
                self._base_logits({"input_ids": batch["input_ids"][:1, :1]})
            return output.new_zeros((), dtype=torch.float32)
        assert self.rehearsal_weight is not None
        part, select = rows
        if self.in_parts:
            model = cast(PreTrainedModel, self.model)
            own = head_inputs(select(output), model, part["labels"])
            chunk = self.chunk or fused_chunk(len(own[0]), *own[1].shape)
            total = chunked_kl_sum(self._base_head(part), own, chunk)
        else:
            total, _ = kl_sum(self._base_logits(part), select(output), part["labels"])
        return self.rehearsal_weight * total / counts.rehearsed


def _without_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is called with: labels would let it compute a loss of its own."""
    return {key: value for key, value in model_inputs(batch).items() if key != "labels"}


def collected_divergence(model: nn.Module) -> AbstractContextManager[DivergenceTerms | None]:
    """Collect an expanded model's divergence; a plain model has none."""
    if isinstance(model, ControlLLMForCausalLM):
        return model.explicit_divergence()
    return nullcontext()
