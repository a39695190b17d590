"""What a run writes for the prompts of its held-out sets, and what is measured of it.

```
QuestionSet --write(base)--> Answer per row    once, kept by the run
            --write(model)-> Answer per row    at each evaluation
both        --measure------> SetReport         numbers of both, on the rows that both have
```
A set may be cut by time, that of the base and that of the model at another row.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError
from controlllm.data import Question, QuestionSet
from controlllm.evaluate.texts import (
    EXTRACTORS,
    METRICS,
    Compared,
    Sample,
    Written,
    needs_of,
    score_each,
    score_targets,
    write_texts,
)
from controlllm.train.config.evaluation_config import GenerationEvalConfig
from controlllm.train.observe.answers import Answer, Answers, Pace, SetReport
from controlllm.train.observe.metrics import generation_metrics
from controlllm.train.parallel import World

__all__ = ["GenerationMeter"]

MOST_LABELS = 20
"""Answers of a set beyond which they are no labels."""


TRIED = 4
"""Rows that metrics are tried on: long ones take some metrics long."""

Scores: TypeAlias = dict[str, dict[str, float]]
"""Metric -> its numbers by name."""


class GenerationMeter:
    """Lets base and model answer the questions of held-out sets.

    Args:
        sets: by name.
        tokenizer: of the model.
        config: metrics and bounds.
        world: processes that share the model, each with all questions.
        batch_size: rows of a batch on each process.
    """

    def __init__(
        self,
        sets: Mapping[str, QuestionSet],
        tokenizer: PreTrainedTokenizerBase,
        config: GenerationEvalConfig,
        world: World,
        batch_size: int,
    ) -> None:
        self.sets, self.tokenizer, self.config, self.world = sets, tokenizer, config, world
        self.batch_size = batch_size
        self.needs = needs_of(config.metrics) if sets else set()
        self.labels = {name: self._labels(one) for name, one in sets.items()}
        self.ends = {name: one.end_ids() for name, one in sets.items()}
        self._base_scores: dict[str, tuple[Sequence[Answer], Scores]] = {}

    @property
    def enabled(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.sets)

    @property
    def rows(self) -> int:
        """Rows of all sets."""
        return sum(len(one.questions) for one in self.sets.values())

    def key(self) -> str:
        """A hash that changes when the same model would be asked for other answers."""
        asked = {
            name: [[one.prompt_ids, one.answer] for one in questions.questions]
            for name, questions in self.sets.items()
        }
        scored = [need for need in sorted(self.needs) if need != "extract"]
        ends = {name: sorted(ids) for name, ids in self.ends.items()}
        text = json.dumps([asked, scored, ends, self.config.max_new_tokens])
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def write(
        self, model: PreTrainedModel, pace: Pace, most: Mapping[str, int] | None = None
    ) -> dict[str, list[Answer]]:
        """The answers of a model to the first rows of each set, as many as time allows. Collective.

        Of each set at least one batch is written, whatever the time.

        Args:
            model: the model, or its base.
            pace: how long it may take.
            most: rows of each set at most.
        """
        most = most or {name: len(one.questions) for name, one in self.sets.items()}
        answers: dict[str, list[Answer]] = {name: [] for name in self.sets}
        rows = sum(most.values())
        step = self.batch_size * self.world.data_size
        for number, name in enumerate(self.sets):
            until = pace.share(len(self.sets) - number)
            for start in range(0, most[name], step):
                batch = range(start, min(start + step, most[name]))
                answers[name] += self._batch(model, name, batch, pace.on_token)
                pace.on_batch(sum(map(len, answers.values())), rows)
                if pace.seconds() >= until:
                    break
        return answers

    def measure(self, base: Answers, tuned: Answers) -> dict[str, SetReport]:
        """The numbers of each set by its name, on the rows that both have.

        Raises:
            ConfigError: a metric fails, or gives no numbers.
        """
        reports = {}
        for name, questions in self.sets.items():
            count = min(len(base[name]), len(tuned[name]))
            rows = questions.questions[:count]
            before, after = base[name][:count], tuned[name][:count]
            if self._base_scores.get(name, (None,))[0] != before:
                self._base_scores[name] = before, self._score(rows, before)
            of_base, of_tuned = self._base_scores[name][1], self._score(rows, after)
            compared = [
                Compared(number, of_base[metric][number], value, higher)
                for metric, numbers in of_tuned.items()
                for number, value in numbers.items()
                if number in of_base[metric]
                for higher in [METRICS.get(metric).higher_is_better]
            ]
            base_cuts, cuts = (sum(one.is_cut for one in some) / count for some in (before, after))
            compared.append(Compared("cut_off", base_cuts, cuts, higher_is_better=False))
            reports[name] = SetReport(count, tuple(compared))
        return reports

    def try_out(self) -> None:
        """Score some right answers, before anything is written: a metric that fails does so now.

        Raises:
            ConfigError: as `measure` does, or there is no answer in any right answer of a set.
        """
        for name, questions in self.sets.items():
            rows = [one.answer.strip() for one in questions.questions]
            if "exact_match" in self.config.metrics and not any(map(self._extract, rows)):
                raise ConfigError(
                    f"exact_match finds no answer in any reference of {name!r}, such as "
                    f"{rows[0][:80]!r}; set evaluation.generation.extractor (and marker) to what "
                    "they look like."
                )
            right = [Answer(row, False, 1, 1, self._certain(name, row)) for row in rows[:TRIED]]
            scores = self._score(questions.questions[:TRIED], right)
            compared = [
                Compared(number, value, value, higher_is_better=True)
                for numbers in scores.values()
                for number, value in numbers.items()
            ]
            generation_metrics(name, TRIED, [*compared, Compared("cut_off", 0, 0, False)])

    def _certain(self, name: str, answer: str) -> dict[str, float]:
        return {label: float(label == answer) for label in self.labels[name]}

    def samples(self, base: Answers, tuned: Answers, name: str) -> list[Sample]:
        """The rows of a set as people read them."""
        rows = zip(self.sets[name].questions, base[name], tuned[name], strict=False)
        return [
            Sample(number, question.prompt, question.answer, before.text, after.text)
            for number, (question, before, after) in enumerate(rows)
        ]

    def _batch(
        self, model: PreTrainedModel, name: str, rows: range, on_token: Callable[[], object]
    ) -> list[Answer]:
        """The answers to some rows, dealt out over the processes. Collective."""
        questions = self.sets[name].part(rows)
        written = write_texts(
            model,
            self.tokenizer,
            [one.prompt_ids for one in questions.questions],
            self.config.max_new_tokens,
            self.ends[name],
            self.world.data_ranks,
            self.world.mesh is not None or self.world.cuts_weights,
            on_token,
        )
        hits = [(0, 0)] * len(rows)
        if "target_hits" in self.needs:
            hits = [(one.hits, one.targets) for one in self._targets(model, questions)]
        labels = self._label_probabilities(model, questions)
        return [_answer(*one) for one in zip(written, hits, labels, strict=True)]

    def _targets(
        self, model: PreTrainedModel, questions: QuestionSet, label: str | None = None
    ) -> list[Any]:
        answers = None if label is None else [label] * len(questions.questions)
        pad_id = min(self.ends[questions.name])
        examples = questions.examples(answers)
        return score_targets(model, examples, self.batch_size, pad_id, self.world.data_ranks)

    def _label_probabilities(
        self, model: PreTrainedModel, questions: QuestionSet
    ) -> list[dict[str, float]]:
        """For each row, how the model divides its belief among the labels of the set."""
        labels = self.labels[questions.name]
        by_label = [
            [one.log_probability for one in self._targets(model, questions, label)]
            for label in labels
        ]
        if not by_label:
            return [{} for _ in questions.questions]
        return [
            dict(zip(labels, _softmax(row), strict=True)) for row in zip(*by_label, strict=True)
        ]

    def _labels(self, questions: QuestionSet) -> list[str]:
        """The labels of a set: its different answers; none where no metric asks for them.

        Raises:
            ConfigError: they are too few or too many to be labels.
        """
        if "label_probabilities" not in self.needs:
            return []
        labels = sorted({one.answer.strip() for one in questions.questions})
        if not 2 <= len(labels) <= MOST_LABELS:
            raise ConfigError(
                f"evaluation.generation.metrics asks for the labels of {questions.name!r} (auc), "
                f"whose first {len(questions.questions)} rows have {len(labels)} different "
                f"answers; labels are 2 to {MOST_LABELS}. Leave auc or the set out."
            )
        return labels

    def _extract(self, text: str) -> str | None:
        """The answer inside a text, as the run looks for it."""
        try:
            return EXTRACTORS.get(self.config.extractor)(text, self.config.marker)
        except Exception as error:  # A user's own function may raise anything.
            raise ConfigError(
                f"evaluation.generation.extractor={self.config.extractor!r} fails: {error!r}."
            ) from error

    def _score(self, questions: Sequence[Question], answers: Sequence[Answer]) -> Scores:
        given = {
            "extract": self._extract,
            "target_hits": [(one.hits, one.targets) for one in answers],
            "label_probabilities": [one.labels for one in answers],
        }
        texts = [one.text for one in answers]
        references = [one.answer.strip() for one in questions]
        return score_each(self.config.metrics, texts, references, given)


def _answer(written: Written, hits: tuple[int, int], labels: dict[str, float]) -> Answer:
    return Answer(written.text, written.is_cut, *hits, labels)


def _softmax(values: Sequence[float]) -> list[float]:
    largest = max(values)
    shares = [math.exp(value - largest) for value in values]
    return [share / sum(shares) for share in shares]
