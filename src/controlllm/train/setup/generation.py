"""The questions that a run lets its model answer, on its held-out sets."""

import logging

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.context import context_of
from controlllm.common.errors import ConfigError
from controlllm.data import QuestionSet, check_questions, read_questions
from controlllm.evaluate.texts import EXTRACTORS, check_metrics
from controlllm.train.config.run_config import RunConfig
from controlllm.train.observe.generation import GenerationMeter
from controlllm.train.parallel import World

__all__ = ["check_generation", "make_generation_meter"]

log = logging.getLogger(__name__)


def check_generation(run: RunConfig) -> None:
    """Check what `evaluation.generation` names, before a model is loaded.

    Raises:
        ConfigError: a metric or the extractor is not known, a package is missing, or a set has no
            prompts and answers.
        DataError: a set cannot be read.
    """
    config = run.evaluation.generation
    if not config.enabled:
        return
    for source in config.sources(run.data).values():
        check_questions(source, run.data)  # Loads the plugins of a user, which may hold metrics.
    check_metrics(config.metrics)
    EXTRACTORS.get(config.extractor)


def make_generation_meter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: RunConfig,
    world: World,
) -> GenerationMeter:
    """The meter of a run; the questions are read and kept in memory.

    Raises:
        ConfigError: no text fits into the context of the model, or a set has no labels.
        DataError: a set cannot be read.
    """
    config = run.evaluation.generation
    context = context_of(model) if config.enabled else None
    if context is not None and config.max_new_tokens >= context:
        raise ConfigError(
            f"evaluation.generation.max_new_tokens={config.max_new_tokens} leaves no room for a "
            f"prompt in the model's context of {context} tokens; set fewer."
        )
    sets: dict[str, QuestionSet] = {}
    for name, source in config.sources(run.data).items():
        questions = read_questions(
            source, tokenizer, run.data, config.max_samples, context, config.max_new_tokens
        )
        left = f"; {questions.too_long:,} rows have too long a prompt" if questions.too_long else ""
        log.info("Texts are written for %d rows of %s%s", len(questions.questions), name, left)
        sets[name] = questions
    batch_size = run.training.per_device_eval_batch_size
    return GenerationMeter(sets, tokenizer, config, world, batch_size)
