"""A model writes by a plan."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from controlllm.common.adapters import as_base
from controlllm.common.text.progress import Progress, progress
from controlllm.evaluate.forgetting.losses import evaluating
from controlllm.evaluate.items.identity import model_identity
from controlllm.evaluate.own_text.plan import SamplingPlan
from controlllm.evaluate.texts.generation import preferring
from controlllm.expansion.files.fingerprint import fingerprint

__all__ = ["Writer", "as_it_is", "continue_prompts", "sample_sequences", "sampling"]


def as_it_is(model: Any) -> AbstractContextManager[Any]:
    """Inside, a model computes what it computes outside."""
    return nullcontext(model)


@dataclass(frozen=True)
class Writer:
    """Who writes.

    Attributes:
        model: that is asked.
        key: tells it from all others; what it wrote is cached under it.
        inside: makes the model compute who writes, by default its base.
    """

    model: PreTrainedModel
    key: str
    inside: Callable[[Any], AbstractContextManager[Any]] = as_base

    @classmethod
    def base(cls, model: PreTrainedModel) -> "Writer":
        """A base: that inside an expanded or adapted model, or a plain model."""
        return cls(model, fingerprint(model))

    @classmethod
    def trained(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Writer":
        """A model with all that it has learned, at the dial it has now."""
        key = str(sorted(model_identity(model, tokenizer).items()))
        return cls(model, key, as_it_is)

    @contextmanager
    def active(self) -> Iterator[PreTrainedModel]:
        """The model as it writes, in evaluation mode without gradients."""
        with evaluating(self.model), self.inside(self.model):
            yield self.model


def sample_sequences(writer: Writer, plan: SamplingPlan, told: str) -> list[list[int]]:
    """Sequences of a plan; the same plan gives the same ones on the same machine.

    `told` says what is going on, for the progress.

    Returns:
        Token ids of each sequence, its prompt and its end token included.
    """
    written = []
    ends = () if plan.end is None else (plan.end,)
    for rows, watch in sampling(writer, plan, plan.length, told):
        prompts = [plan.prompts[i % len(plan.prompts)] for i in rows]
        most = plan.length - max(map(len, prompts))
        new = continue_prompts(writer.model, prompts, most, ends, plan.temperature, watch)
        written += [[*prompt, *tokens] for prompt, tokens in zip(prompts, new, strict=True)]
    return written


def sampling(
    writer: Writer, plan: Any, length: int, told: str
) -> Iterator[tuple[range, StoppingCriteria]]:
    """The rows of each batch of a plan, while the writer is active and random numbers are its own.

    `length` is that of the longest sequence. Afterwards the process's random state is as it was.
    """
    model, number = writer.model, plan.num_sequences
    devices = [model.device] if model.device.type == "cuda" else []
    shown = progress(told, "sequences", number)
    with writer.active(), torch.random.fork_rng(devices), shown as line:
        torch.manual_seed(plan.seed)
        for first in range(0, number, plan.batch_size):
            rows = range(first, min(first + plan.batch_size, number))
            yield rows, _Watch(line, rows, length)
            line.show(rows.stop)


class _Watch(StoppingCriteria):
    """Shows the progress of a batch of sequences, `rows`; never stops generation."""

    def __init__(self, line: Progress, rows: range, length: int) -> None:
        self.line, self.rows, self.length = line, rows, length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.line.show(self.rows.start + len(self.rows) * input_ids.shape[1] / self.length)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def continue_prompts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    most: int,
    ends: Sequence[int],
    temperature: float,
    watch: StoppingCriteria,
) -> list[list[int]]:
    """What the model writes after each prompt: at most so many tokens, to one of the ends.

    Random numbers are the process's.

    Returns:
        The new tokens of each, an end token included.
    """
    longest = max(map(len, prompts))  # They are padded on the left: all end where it starts.
    gaps = [[0] * (longest - len(prompt)) for prompt in prompts]
    ids_BT = torch.tensor([[*gap, *prompt] for gap, prompt in zip(gaps, prompts, strict=True)])
    mask_BT = torch.tensor([[*gap, *[1] * (longest - len(gap))] for gap in gaps])
    # The model's own distribution; transformers' default would be the 50 likeliest tokens.
    config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_length=longest + most,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
    )
    with preferring(model, config):
        output = model.generate(
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            stopping_criteria=StoppingCriteriaList([watch]),
            synced_gpus=False,  # One process writes; under ZeRO-3 it would wait for the others.
        )
    rows = []
    for row in output[:, longest:].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        rows.append(row[: end + 1])  # What follows is padding.
    return rows
