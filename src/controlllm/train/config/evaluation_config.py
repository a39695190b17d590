"""What is measured while a run trains, beside the losses of its held-out sets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.facts import Read, check_values, setting
from controlllm.common.registry import check_choice
from controlllm.common.settings import LONGEST_SECONDS, TINY
from controlllm.data import DataConfig, SourceConfig

__all__ = ["EvaluationConfig", "GenerationEvalConfig"]

_WITHOUT_EXTRACTOR = {"rouge", "bleu", "chrf", "token_accuracy", "auc"}
"""Metrics of ours that compare whole texts; what a user's own reads is not known."""


def _generation(condition: Callable[["GenerationEvalConfig"], bool]) -> Callable[[Any], bool]:
    return lambda run: condition(run.evaluation.generation)


@dataclass
class GenerationEvalConfig:
    """Texts that the model writes for the prompts of held-out sets, held against the answers."""

    sets: list[str] = field(default_factory=list)
    """Names of sets of data.learn and data.retain that hold prompts and answers; none = off."""
    metrics: list[str] = field(default_factory=lambda: ["rouge"])
    """rouge, bleu, chrf, exact_match, token_accuracy, auc, or a registered name. Docs:
    docs/observing.md."""
    max_new_tokens: int = setting(128, at_least=1)
    """Most tokens of a text; how many texts were cut there is logged."""
    max_samples: int | None = setting(100, at_least=1)
    """Only the first so many rows of each set; null = all."""
    max_seconds: float | None = setting(600.0, at_least=TINY, at_most=LONGEST_SECONDS)
    """Seconds for all sets of one evaluation, not counting the batch that is under way: what is
    left of a set then is not scored, and the log says how many rows were. null = no bound."""
    eval_steps: int | None = setting(None, at_least=1)
    """Optimizer steps between these evaluations; also before and after. null =
    training.eval_steps."""
    extractor: str = setting(
        "whole",
        read=Read(
            _generation(lambda own: bool(set(own.metrics) - _WITHOUT_EXTRACTOR)),
            "none of evaluation.generation.metrics looks for an answer inside a text, as "
            "exact_match does",
        ),
    )
    """exact_match: the answer inside a text: whole, last_number, after_marker, or a registered
    name."""
    marker: str = setting(
        "####",
        read=Read(
            _generation(lambda own: own.extractor not in ("whole", "last_number")),
            "only evaluation.generation.extractor=after_marker reads it",
        ),
    )
    """after_marker: what stands before the answer."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "evaluation.generation")
        for name in ("sets", "metrics"):
            given = getattr(self, name)
            if twice := sorted({one for one in given if given.count(one) > 1}):
                raise ConfigError(f"evaluation.generation.{name} names {twice[0]!r} twice.")
        if self.sets and not self.metrics:
            raise ConfigError(
                "evaluation.generation.metrics names none; give one, such as rouge, or no sets."
            )
        if not self.marker:
            raise ConfigError("evaluation.generation.marker is empty; '####' is usual.")

    @property
    def enabled(self) -> bool:
        """Whether anything is written at all."""
        return bool(self.sets)

    def sources(self, data: DataConfig) -> dict[str, SourceConfig]:
        """The sets by name.

        Raises:
            ConfigError: there is none of that name, or two; with the nearest name.
        """
        held_out = [*data.learn, *data.retain]
        names = [str(source.name) for source in held_out]
        for name in self.sets:
            if not names:
                raise ConfigError(
                    f"evaluation.generation.sets names {name!r}, and data.learn and data.retain "
                    "name no set; give it there."
                )
            check_choice("evaluation.generation.sets", name, names)
            if names.count(name) > 1:
                raise ConfigError(
                    f"evaluation.generation.sets names {name!r}, which data.learn and data.retain "
                    "both have; set `name` of one of them to another one."
                )
        return {name: held_out[names.index(name)] for name in self.sets}


_OF_SUITE = Read(lambda run: run.evaluation.suite is not None, "evaluation.suite names no suite")


@dataclass
class EvaluationConfig:
    """What is measured while a run trains, beside losses and forgetting."""

    generation: GenerationEvalConfig = setting(
        factory=GenerationEvalConfig,
        read=Read(
            lambda run: run.evaluation.generation.enabled,
            "evaluation.generation.sets names no set",
        ),
    )
    """Texts that are written and scored."""
    suite: str | None = None
    """Suite of benchmarks that is asked as well (`controlllm suites` lists them; `quick` writes
    nothing), or a YAML file; null = none. The base's answers are kept for `controlllm eval`."""
    data_dir: str | None = setting(None, read=_OF_SUITE)
    """Folder with local data of the suite (docs/suites.md); the rest comes from the Hub."""
    sample: int | None = setting(100, at_least=1, read=_OF_SUITE)
    """Questions drawn of each benchmark, by training.seed; null = all."""
    suite_steps: int | None = setting(None, at_least=1, read=_OF_SUITE)
    """Optimizer steps between two times that the suite is asked; also before and after. null =
    training.eval_steps."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "evaluation")
