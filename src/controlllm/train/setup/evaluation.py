"""The forgetting meter of a run, on its held-out sets."""

import logging

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.distributed import Ranks
from controlllm.data import Batch, SourceConfig, eval_batches, read_examples
from controlllm.evaluate import Reference
from controlllm.train.config.run_config import RunConfig
from controlllm.train.observe.retention import ForgettingMeter

__all__ = ["make_meter"]

log = logging.getLogger(__name__)


def make_meter(
    models: tuple[PreTrainedModel, Reference | None],
    tokenizer: PreTrainedTokenizerBase,
    run: RunConfig,
    ranks: Ranks,
) -> ForgettingMeter:
    """The meter of a model and its base; the sets are read and kept in memory."""

    def batches(sources: list[SourceConfig]) -> dict[str, list[Batch]]:
        return {str(source.name): _eval_set(source, tokenizer, run) for source in sources}

    return ForgettingMeter(*models, batches(run.data.learn), batches(run.data.retain), ranks)


def _eval_set(
    source: SourceConfig, tokenizer: PreTrainedTokenizerBase, run: RunConfig
) -> list[Batch]:
    training = run.training
    examples, stats = read_examples(source, tokenizer, run.data)
    tokens = sum(map(len, examples))
    read = f"{len(examples):,} examples of {tokens:,} tokens are measured"
    log.info("Evaluation set %s: %s; %s", source.name, read, stats.describe())
    return eval_batches(examples, tokenizer, run.data, training.per_device_eval_batch_size)
