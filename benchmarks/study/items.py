"""Benchmarks that a study asks the base and every cell, at each setting of its dial."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from controlllm.common.registry import check_choice
from controlllm.evaluate import (
    Draw,
    Evaluation,
    Item,
    LoadedSuite,
    Subject,
    ask_model,
    available,
    base_identity,
    load_questions,
    load_suite,
)
from controlllm.evaluate.forgetting.dial import Dial
from controlllm.evaluate.items.comparison import pair
from controlllm.evaluate.suites.suite import Suite

__all__ = ["Answered", "Questions", "chosen_suite"]

SUITE = "small"
BATCH = 8

Answered = dict[str, list[tuple[float, float, float, float]]]
"""By benchmark, of each question in one order: right (1 or 0) of base and model, bits per byte of
the right answer of base and model."""


def chosen_suite(benchmarks: Sequence[str]) -> Suite:
    """The named benchmarks of the suite (ConfigError where one is not there)."""
    suite = load_suite(SUITE)
    known = {one.name: one for one in suite.benchmarks if one.kind != "code"}
    for name in benchmarks:
        check_choice("benchmarks", name, known)
    return replace(suite, benchmarks=tuple(known[name] for name in benchmarks))


@dataclass
class Questions:
    """Drawn questions, and a folder where the base's answers are kept."""

    suite: LoadedSuite
    tokenizer: Any
    store: Path

    @classmethod
    def load(
        cls, benchmarks: Sequence[str], number: int, data: Path, tokenizer: Any, store: Path
    ) -> "Questions":
        """As many of each benchmark, the same for all cells."""
        suite = available(chosen_suite(benchmarks), str(data))
        return cls(load_questions(suite, str(data), Draw(sample=number)), tokenizer, store)

    def answered(
        self, dial: Dial, settings: Mapping[str, float | None]
    ) -> dict[str, Answered] | None:
        """What base and model answer at each setting; None of what is no model of transformers."""
        if not isinstance(dial.model, PreTrainedModel):
            return None
        with dial.reference.active() as base:
            identity = base_identity(base, self.tokenizer)
            before = self._ask("base", base, identity, self.store)
        found: dict[float | None, Answered] = {}
        for setting in dict.fromkeys(settings.values()):
            dial.turn(setting)
            found[setting] = self._pairs(before, self._ask("tuned", dial.model, {}, None))
        return {label: found[setting] for label, setting in settings.items()}

    def _ask(
        self, label: str, model: Any, identity: dict[str, str], store: Path | None
    ) -> Evaluation:
        subject = Subject(label, label, None, identity)
        return ask_model(self.suite, subject, model, self.tokenizer, store=store, batch_size=BATCH)

    def _pairs(self, before: Evaluation, after: Evaluation) -> Answered:
        """Both models' readings, question by question."""
        found: Answered = {}
        for asked in before.benchmarks:
            pairs = pair(before.of("base", asked.name), after.of("tuned", asked.name))
            found[asked.name] = [
                (_right(a), _right(b), a.bits_per_byte or 0.0, b.bits_per_byte or 0.0)
                for a, b in pairs
            ]
        return found


def _right(item: Item) -> float:
    return (item.choice if item.strict is None else item.strict) or 0.0
