"""Self-rehearsal: before training, the base writes down what it knows.

    base --sample N sequences--> cache (addressed by base and settings) --> TokenStore
                                                                              |
    TrainLoader(..., rehearsal=(source, share)) mixes them into each batch <--'

Where a run goes on from others, each of these stages writes as many; what a stage wrote is kept
beside its own run, where later runs find it.

During training they are rehearsed by KL to the base's own predictions (those of the stage right
before, where there is one), or as ordinary training rows
(docs/method.md §9). Sampling has its own seed and leaves the process's random state alone.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TypedDict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.storage.files import write_text
from controlllm.common.storage.schema import read_record
from controlllm.data import TokenStore
from controlllm.evaluate.own_text import OWN_TEXT, SamplingPlan, read_prompts, sample_sequences
from controlllm.train.config.config_io import read_yaml
from controlllm.train.config.run_config import RunConfig
from controlllm.train.setup.ways.contract import BASE, Stage

__all__ = ["rehearsal_source"]

log = logging.getLogger(__name__)


def rehearsal_source(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: RunConfig,
    stages: Sequence[Stage] = (),
) -> TokenStore:
    """The sequences of all stages as a source for the train loader, from caches if they are there.

    The model may carry the base (expanded, or with adapters); the base writes, and each stage that
    the run goes on from.

    Raises:
        ConfigError: if there is nothing to start from, or sequences would not fit.
    """
    own = Path(run.rehearsal.cache_dir or Path(run.training.output_dir) / "rehearsal")
    every = stages or (Stage(BASE),)
    places = [
        own,
        *(s.folder / name for s in every if s.folder for name in (OWN_TEXT, "rehearsal")),
    ]
    written = []
    for stage in every:
        plan = _make_plan(model, tokenizer, run, _prompts_of(stage, run))
        writer = stage.writer(model)
        key = hashlib.sha256(f"{writer.key}{plan}".encode()).hexdigest()[:24]
        path = next((p for place in places if (p := place / f"{key}.json").is_file()), None)
        if path is not None:
            log.info("Rehearsal: %d sequences from %s", plan.num_sequences, path)
            written.append(_read(path, model))
            continue
        who = "the base" if stage.name == BASE else f"the stage {stage.name}"
        log.info("Rehearsal: %s writes %d sequences", who, plan.num_sequences)
        sequences = sample_sequences(writer, plan, f"rehearsal: {who} writes")
        folder = own if run.rehearsal.cache_dir else stage.folder_of_text(own)
        write_text(folder / f"{key}.json", json.dumps({"sequences": sequences}))
        written.append(sequences)
    together = [sequence for same in zip_longest(*written) for sequence in same if sequence]
    return TokenStore.from_tokens("rehearsal", together)


class _Written(TypedDict):
    """A file of the cache."""

    sequences: list[list[int]]


def _read(path: Path, model: PreTrainedModel) -> list[list[int]]:
    """Sequences of a cache, which may lie in somebody's folder (CheckpointError)."""
    sequences: list[list[int]] = read_record(path, _Written)["sequences"]
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if not all(row and min(row) >= 0 and max(row) < vocabulary for row in sequences):
        raise CheckpointError(f"{path} holds no sequences of this model's tokens; remove the file.")
    return sequences


def _prompts_of(stage: Stage, run: RunConfig) -> str | None:
    """The prompt file of what a stage writes: its own run's, where that is known and there."""
    if stage.folder is None:
        return run.rehearsal.prompts
    path = stage.folder / "config.yaml"
    section = (read_yaml(path) if path.is_file() else {}).get("rehearsal") or {}
    prompts = section.get("prompts") if isinstance(section, dict) else None
    if prompts is None or Path(str(prompts)).is_file():
        return None if prompts is None else str(prompts)
    log.warning(
        "rehearsal.prompts=%r of the stage %s is not there; it writes without prompts.",
        prompts,
        stage.name,
    )
    return None


def _make_plan(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: RunConfig,
    prompt_file: str | None,
) -> SamplingPlan:
    rehearsal = run.rehearsal
    length = rehearsal.length or run.data.max_length
    prompts = read_prompts(tokenizer, prompt_file, "rehearsal")
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
