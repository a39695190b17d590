"""Self-rehearsal: before training, the base writes down what it knows.

    base --sample N sequences--> cache (addressed by base and settings) --> TokenStore
                                                                              |
    TrainLoader(..., rehearsal=(source, share)) mixes them into each batch <--'

During training they are rehearsed by KL to the base's own predictions, or as ordinary training rows
(docs/method.md §9). Sampling has its own seed and leaves the process's random state alone.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
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
from controlllm.common.errors import ConfigError
from controlllm.common.storage.files import read_json, write_text
from controlllm.common.text.progress import Progress, progress
from controlllm.data import TokenStore
from controlllm.evaluate import evaluating
from controlllm.expansion.files.fingerprint import fingerprint
from controlllm.train.config.run_config import RunConfig

__all__ = ["SamplingPlan", "rehearsal_source", "sample_sequences"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplingPlan:
    """All that decides what the base writes."""

    num_sequences: int  # how many sequences
    length: int  # most tokens of one, its prompt included
    temperature: float  # of sampling
    batch_size: int  # sequences sampled at a time (it takes part in the random numbers)
    seed: int  # of sampling
    prompts: tuple[tuple[int, ...], ...]  # token ids that sequences start with, taken in turn
    end: int | None  # token that ends a sequence; None = every sequence has full length


def rehearsal_source(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: RunConfig
) -> TokenStore:
    """The sequences of the base as a source for the train loader, from the cache if they are there.

    The model may carry the base (expanded, or with adapters); the base writes.

    Raises:
        ConfigError: if there is nothing to start from, or sequences would not fit.
    """
    plan = _make_plan(model, tokenizer, run)
    folder = run.rehearsal.cache_dir or Path(run.training.output_dir) / "rehearsal"
    key = hashlib.sha256(f"{fingerprint(model)}{plan}".encode()).hexdigest()[:24]
    path = Path(folder) / f"{key}.json"
    if path.is_file():
        log.info("Rehearsal: %d sequences from %s", plan.num_sequences, path)
        sequences = read_json(path)["sequences"]
    else:
        log.info("Rehearsal: the base writes %d sequences", plan.num_sequences)
        sequences = list(sample_sequences(model, plan))
        write_text(path, json.dumps({"sequences": sequences}))
    return TokenStore.from_tokens("rehearsal", sequences)


def sample_sequences(model: PreTrainedModel, plan: SamplingPlan) -> Iterator[list[int]]:
    """Let the base write; the same plan gives the same sequences on the same machine.

    Yields:
        Token ids of one sequence, its prompt and its end token included.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    written: list[list[int]] = []
    number = plan.num_sequences
    shown = progress("rehearsal: the base writes", "sequences", number)
    with evaluating(model), as_base(model), torch.random.fork_rng(devices), shown as line:
        torch.manual_seed(plan.seed)
        while len(written) < number:
            rows = range(len(written), min(len(written) + plan.batch_size, number))
            prompts = [plan.prompts[i % len(plan.prompts)] for i in rows]
            written += _sample_batch(model, plan, prompts, _Watch(line, rows, plan.length))
            line.show(len(written))
    yield from written


class _Watch(StoppingCriteria):
    """Shows the progress of a batch of sequences, `rows`; never stops generation."""

    def __init__(self, line: Progress, rows: range, length: int) -> None:
        self.line, self.rows, self.length = line, rows, length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.line.show(self.rows.start + len(self.rows) * input_ids.shape[1] / self.length)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _sample_batch(
    model: PreTrainedModel, plan: SamplingPlan, prompts: list[tuple[int, ...]], watch: _Watch
) -> list[list[int]]:
    longest = max(map(len, prompts))  # They are padded on the left: all end where it starts.
    gaps = [[0] * (longest - len(prompt)) for prompt in prompts]
    ids_BT = torch.tensor([[*gap, *prompt] for gap, prompt in zip(gaps, prompts, strict=True)])
    mask_BT = torch.tensor([[*gap, *[1] * (longest - len(gap))] for gap in gaps])
    writer: Any = model  # `PreTrainedModel` is not typed as something that generates.
    output = writer.generate(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        # The model's own distribution: what a checkpoint's generation config prefers is off.
        generation_config=GenerationConfig(
            do_sample=True,
            temperature=plan.temperature,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_length=plan.length,
            eos_token_id=-1 if plan.end is None else plan.end,
            pad_token_id=0 if plan.end is None else plan.end,
        ),
        stopping_criteria=StoppingCriteriaList([watch]),
    )
    rows = []
    for row, prompt in zip(output.tolist(), prompts, strict=True):
        new = row[longest:]
        if plan.end in new:  # What follows is padding.
            new = new[: new.index(plan.end) + 1]
        rows.append([*prompt, *new][: plan.length])
    return rows


def _make_plan(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: RunConfig
) -> SamplingPlan:
    rehearsal = run.rehearsal
    length = rehearsal.length or run.data.max_length
    prompts = _prompts(tokenizer, rehearsal.prompts)
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", length)
    setting = "rehearsal.length" if rehearsal.length else "data.max_length"
    for what, most in (("data.max_length", run.data.max_length), ("the model's context", limit)):
        if length > most:
            raise ConfigError(f"{setting}={length} is more than {what} ({most}).")
    longest = max(len(prompt) for prompt in prompts)
    if longest >= length:
        raise ConfigError(
            f"rehearsal.prompts has a prompt of {longest} tokens, which leaves no room in "
            f"{setting}={length}; shorten the prompt or raise the length."
        )
    return SamplingPlan(
        num_sequences=rehearsal.num_sequences,
        length=length,
        temperature=rehearsal.temperature,
        batch_size=rehearsal.batch_size,
        seed=run.training.seed,
        prompts=prompts,
        end=tokenizer.eos_token_id,
    )


def _prompts(tokenizer: PreTrainedTokenizerBase, path: str | None) -> tuple[tuple[int, ...], ...]:
    """The lines of the prompt file in tokens, or the BOS token (EOS where a model has no BOS)."""
    if path is None:
        starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        start = next((token for token in starts if token is not None), None)
        if start is None:
            raise ConfigError(
                "the tokenizer has neither a BOS nor an EOS token to start sequences from; "
                "name a file of prompts, one per line, as rehearsal.prompts."
            )
        return ((start,),)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read rehearsal.prompts={path!r}: {error.strerror}.") from error
    prompts = tuple(tuple(tokenizer(line).input_ids) for line in lines if line.strip())
    if not prompts:
        raise ConfigError(f"rehearsal.prompts={path!r} holds no prompt; give one per line.")
    return prompts
