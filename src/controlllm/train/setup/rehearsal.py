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
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError
from controlllm.common.storage.files import read_json, write_text
from controlllm.data import TokenStore
from controlllm.evaluate.own_text import SamplingPlan, Writer, read_prompts, sample_sequences
from controlllm.train.config.run_config import RunConfig

__all__ = ["rehearsal_source"]

log = logging.getLogger(__name__)


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
    writer = Writer.base(model)
    key = hashlib.sha256(f"{writer.key}{plan}".encode()).hexdigest()[:24]
    path = Path(folder) / f"{key}.json"
    if path.is_file():
        log.info("Rehearsal: %d sequences from %s", plan.num_sequences, path)
        sequences = read_json(path)["sequences"]
    else:
        log.info("Rehearsal: the base writes %d sequences", plan.num_sequences)
        sequences = sample_sequences(writer, plan, "rehearsal: the base writes")
        write_text(path, json.dumps({"sequences": sequences}))
    return TokenStore.from_tokens("rehearsal", sequences)


def _make_plan(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: RunConfig
) -> SamplingPlan:
    rehearsal = run.rehearsal
    length = rehearsal.length or run.data.max_length
    prompts = read_prompts(tokenizer, rehearsal.prompts, "rehearsal")
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
