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
    """All that decides what the base writes.

    Attributes:
        num_sequences: how many sequences.
        length: most tokens of one, its prompt included.
        temperature: of sampling.
        batch_size: sequences sampled at a time (it takes part in the random numbers).
        seed: of sampling.
        prompts: token ids that sequences start with, taken in turn.
        end: token that ends a sequence; None = every sequence has full length.
    """

    num_sequences: int
    length: int
    temperature: float
    batch_size: int
    seed: int
    prompts: tuple[tuple[int, ...], ...]
    end: int | None


def rehearsal_source(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: RunConfig
) -> TokenStore:
    """The sequences of the base as a source for the train loader, from the cache if they are there.

    Args:
        model: the base, or one that carries it (expanded, or with adapters): the base writes.
        tokenizer: gives the BOS token, or tokenizes the prompts.
        run: its `rehearsal`, `data.max_length` and `training.seed`.

    Raises:
        ConfigError: if there is nothing to start from, or sequences would not fit.
    """
    plan = _make_plan(model, tokenizer, run)
    folder = run.rehearsal.cache_dir or Path(run.training.output_dir) / "rehearsal"
    path = Path(folder) / f"{_key(model, plan)}.json"
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
    """Shows the progress of a batch; never stops generation.

    Args:
        line: where.
        rows: which sequences they are.
        length: most tokens of one.
    """

    def __init__(self, line: Progress, rows: range, length: int) -> None:
        self.line, self.rows, self.length = line, rows, length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.line.show(self.rows.start + len(self.rows) * input_ids.shape[1] / self.length)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _sample_batch(
    model: PreTrainedModel, plan: SamplingPlan, prompts: list[tuple[int, ...]], watch: _Watch
) -> list[list[int]]:
    ids_BT, mask_BT = _left_padded(prompts)
    longest = ids_BT.shape[1]
    writer: Any = model  # `PreTrainedModel` is not typed as something that generates.
    output = writer.generate(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        generation_config=_plain_sampling(plan),
        stopping_criteria=StoppingCriteriaList([watch]),
    )
    rows = []
    for row, prompt in zip(output.tolist(), prompts, strict=True):
        new = _cut(row[longest:], plan.end)
        rows.append([*prompt, *new][: plan.length])
    return rows


def _plain_sampling(plan: SamplingPlan) -> GenerationConfig:
    """The model's own distribution: what a checkpoint's generation config prefers is off."""
    pad = plan.end if plan.end is not None else 0
    return GenerationConfig(
        do_sample=True,
        temperature=plan.temperature,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        max_length=plan.length,
        eos_token_id=-1 if plan.end is None else plan.end,
        pad_token_id=pad,
    )


def _left_padded(prompts: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Prompts as one batch (B, T) that ends where generation starts, and its attention mask."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _cut(tokens: list[int], end: int | None) -> list[int]:
    """Tokens up to and with the end token; what follows is padding."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


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


def _key(model: PreTrainedModel, plan: SamplingPlan) -> str:
    """What the cache is addressed by: the base's weights and the plan."""
    text = f"{fingerprint(model)}{plan}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]
