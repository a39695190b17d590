"""What is read of a trained model: its dial's settings for each budget, losses and KL at each."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from controlllm.common.adapters import merge_adapters
from controlllm.data import Batch
from controlllm.evaluate import average_weights
from controlllm.evaluate.forgetting.averaging import averager
from controlllm.evaluate.forgetting.dial import Dial
from controlllm.evaluate.forgetting.losses import per_token
from controlllm.evaluate.forgetting.reference import Reference
from controlllm.evaluate.forgetting.retention import compare_documents, measure_settings, worst
from controlllm.expansion import ControlLLMForCausalLM

__all__ = [
    "AS_TRAINED",
    "CHOSEN",
    "Sets",
    "Settings",
    "choose_settings",
    "computed_in",
    "losses",
    "make_dial",
    "within",
]

AS_TRAINED = "as trained"
CHOSEN = "chosen "
"""Stands before the names of sets that were chosen on."""
TRIES = 6
"""Settings between those of a study that are measured for each budget, at most."""
NEAR = 0.95
"""A setting that uses so much of its budget is near enough."""
AIM = (NEAR + 1) / 2
"""What is tried is meant to use so much of it: who aims at the budget stays a little above it."""

Sets = Mapping[str, Sequence[Batch]]
"""Batches by the name of what they hold."""
Settings = Mapping[str, float | None]
"""Settings of a dial by what they are told as; None = as trained."""


@contextmanager
def computed_in(dtype: torch.dtype) -> Iterator[None]:
    """Inside, models are computed in this type; what was trained under autocast is float32."""
    # A dial changes weights in place: what was cast before must not be read again.
    low = dtype is not torch.float32
    with torch.autocast("cpu", dtype if low else None, enabled=low, cache_enabled=False):
        yield


def make_dial(model: Any, base: PreTrainedModel) -> Dial:
    """What is turned between base and trained model: alpha, or the weight in their average."""
    if isinstance(model, ControlLLMForCausalLM):
        return Dial(model, model.set_alpha, Reference(model), "alpha")
    merge_adapters(model)
    mixed = average_weights(base, model, 1.0)
    turn = averager(base, model, mixed)
    return Dial(mixed, turn, Reference(mixed, copy=base), "averaging with the base")


def choose_settings(
    dial: Dial, own: Sets, dials: Sequence[float], budgets: Sequence[float]
) -> Settings:
    """As trained, and for each budget the largest setting whose KL on own text keeps to it.

    What lies between two that were measured is measured, and moved until it fits the budget.
    """
    costs: dict[float, float] = {0.0: 0.0}

    def measure(settings: Sequence[float]) -> None:
        turns = [partial(dial.turn, setting) for setting in settings]
        read = [
            [report.kl for report in measure_settings(dial.model, batches, turns, dial.reference)]
            for batches in own.values()
        ]
        costs.update(zip(settings, map(worst, zip(*read, strict=True)), strict=True))

    def largest(budget: float) -> float:
        fits = 0.0
        for setting in sorted(costs):
            if costs[setting] > budget:
                break
            fits = setting
        return fits

    measure(dials)
    found: dict[str, float | None] = {AS_TRAINED: None}
    for budget in budgets:
        for _ in range(TRIES):
            known = sorted(costs)
            tried = within(known, [costs[setting] for setting in known], budget, AIM)
            if tried in costs or costs[largest(budget)] > NEAR * budget:
                break
            measure([tried])
        found[f"KL {budget:g}"] = largest(budget)
    return found


def within(
    dials: Sequence[float], costs: Sequence[float], budget: float, aim: float = 1.0
) -> float:
    """The largest dial before the first that costs too much, or the one that costs `aim` of it.

    Between two of them the root of the cost is linear: near the base KL grows with the square.

    >>> round(within([0.5, 1.0], [0.01, 0.04], 0.0225), 3)
    0.75
    """
    left, low = 0.0, 0.0
    for right, high in zip(dials, costs, strict=True):
        if high > budget:
            root = math.sqrt(max(low, 0.0))
            part = (math.sqrt(aim * budget) - root) / (math.sqrt(high) - root)
            return left + (right - left) * max(part, 0.0)
        left, low = right, high
    return left


def losses(dial: Dial, sets: Sets, at: Settings) -> dict[str, dict[str, Any]]:
    """By setting: where the dial stands, and what is read of each set there."""
    turns = [partial(dial.turn, setting) for setting in at.values()]
    found: dict[str, dict[str, Any]] = {
        label: {"dial": setting, "sets": {}} for label, setting in at.items()
    }
    for name, batches in sets.items():
        read: list[list[Tensor]] = [[] for _ in turns]
        for number, documents_D4 in compare_documents(dial.model, batches, turns, dial.reference):
            read[number].append(documents_D4)
        for of_setting, parts in zip(found.values(), read, strict=True):
            of_setting["sets"][name] = _means(torch.cat(parts))
    return found


def _means(documents_D4: Tensor) -> dict[str, Any]:
    """Means per target token, and of each document its tokens and three sums, in nats."""
    tokens, *sums = documents_D4.sum(0).tolist()
    means = [per_token(total, int(tokens)) for total in sums]
    documents = [[round(number, 4) for number in one] for one in documents_D4.tolist()]
    told = dict(zip(("base", "loss", "kl"), means, strict=True))
    return told | {"tokens": int(tokens), "documents": documents}
