"""Numbers from texts and references, by name.

| metric | its numbers | scale |
|---|---|---|
| `rouge` | `rouge1`, `rouge2`, `rougeL`, `rougeLsum`: mean F-measures (rouge-score) | 0 to 1 |
| `bleu` | `bleu` of all texts together (sacrebleu) | 0 to 100 |
| `chrf` | `chrf` of all texts together (sacrebleu) | 0 to 100 |
| `exact_match` | `exact_match`: share of texts whose extracted answer is the reference's | 0 to 1 |
| `token_accuracy` | `token_accuracy`: share of the references' tokens, teacher-forced | 0 to 1 |
| `auc` | `auc`: area under the ROC curve of the labels' probabilities (scikit-learn) | 0 to 1 |

ROUGE counts words; a Chinese or Japanese character is a word of its own, as no space stands between
them. BLEU takes sacrebleu's tokenizer `zh` where more than half of the references' letters are such
characters, else `13a`.

A metric of one's own: docs/extending/metric.md.
"""

import importlib
import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlllm.common.errors import ConfigError, ControlLLMError
from controlllm.common.quiet import quiet_imports
from controlllm.common.registry import Registry, check_choice

__all__ = [
    "METRICS",
    "NEEDS",
    "Metric",
    "check_metrics",
    "is_mostly_cjk",
    "needs_of",
    "register_metric",
    "score_each",
    "score_texts",
]

Function = Callable[..., Mapping[str, float]]

NEEDS = ("extract", "target_hits", "label_probabilities")
"""What a metric may ask for besides texts and references, by the names of its arguments:

`extract`              text -> the answer inside it, or None (`evaluation.generation.extractor`)
`target_hits`          for each row (right, all): tokens of the right answer, teacher-forced
`label_probabilities`  for each row label -> probability; the labels are the set's references
"""


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        function: (texts, references) -> numbers by name; what it needs more comes by keyword.
        higher_is_better: whether a larger number is a better one.
        needs: which of `NEEDS` it asks for.
        packages: what it imports: module -> name on PyPI.
    """

    function: Function
    higher_is_better: bool = True
    needs: tuple[str, ...] = ()
    packages: tuple[tuple[str, str], ...] = ()


METRICS: Registry[Metric] = Registry("evaluation.generation.metrics")
"""Metrics by name."""


def register_metric(
    name: str,
    function: Function,
    *,
    higher_is_better: bool = True,
    needs: Sequence[str] = (),
    packages: Mapping[str, str] | None = None,
) -> None:
    """Make a metric known by name.

    Args:
        name: what `evaluation.generation.metrics` says.
        function: (texts, references) -> {name: number}; both are lists of as many strings.
        higher_is_better: whether a larger number is a better one.
        needs: what the function takes besides, by keyword (`NEEDS`).
        packages: optional packages that it imports: module -> name on PyPI. One that is not
            installed is told before anything is loaded.

    Raises:
        ConfigError: the name is taken, or it needs what there is not.
    """
    for need in needs:
        check_choice(f"needs of the metric {name!r}", need, NEEDS)
    metric = Metric(function, higher_is_better, tuple(needs), tuple((packages or {}).items()))
    METRICS.register(name)(metric)


def check_metrics(names: Sequence[str]) -> None:
    """Check that metrics are known and their packages installed; nothing is imported.

    Raises:
        ConfigError: with the nearest name, or what to install.
    """
    for name in names:
        metric = METRICS.get(name)
        for module, package in metric.packages:
            if importlib.util.find_spec(module) is None:
                raise ConfigError(
                    f"evaluation.generation.metrics={name!r} needs {package}, which is not "
                    f"installed: pip install {package} (or 'controlllm[eval]')."
                )


def needs_of(names: Sequence[str]) -> set[str]:
    """What metrics need besides texts and references."""
    return {need for name in names for need in METRICS.get(name).needs}


def score_texts(
    names: Sequence[str],
    texts: Sequence[str],
    references: Sequence[str],
    given: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """The numbers of some metrics.

    Args:
        names: of the metrics.
        texts: what was written.
        references: what should have been written, one for each text.
        given: what metrics need besides, by the names of `NEEDS`.

    Returns:
        Numbers by name, in the order of the metrics.

    Raises:
        ConfigError: a metric is not known, fails, gives something else than numbers, or gives a
            name that another one gave.
    """
    by_metric = score_each(names, texts, references, given)
    return {key: value for numbers in by_metric.values() for key, value in numbers.items()}


def score_each(
    names: Sequence[str],
    texts: Sequence[str],
    references: Sequence[str],
    given: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, float]]:
    """As `score_texts`: the numbers of each metric by its name.

    Raises:
        ConfigError: as `score_texts` does.
    """
    if len(texts) != len(references):
        raise ConfigError(f"{len(texts)} texts cannot be held against {len(references)} references")
    taken: set[str] = set()
    numbers: dict[str, dict[str, float]] = {}
    for name in names:
        metric, more = METRICS.get(name), given or {}
        if missing := [need for need in metric.needs if need not in more]:
            raise ConfigError(f"the metric {name!r} needs {', '.join(missing)}, which is not given")
        needed = {need: more[need] for need in metric.needs}
        try:
            result = metric.function(list(texts), list(references), **needed)
        except ControlLLMError:
            raise
        except Exception as error:  # A user's own function may raise anything.
            raise ConfigError(f"the metric {name!r} fails: {error!r}.") from error
        numbers[name] = _checked(name, result)
        if twice := sorted(taken & numbers[name].keys()):
            raise ConfigError(
                f"two of the metrics {', '.join(names)} give a number called {twice[0]!r}; rename "
                f"that of {name!r}, or leave one of them out."
            )
        taken |= numbers[name].keys()
    return numbers


def _checked(name: str, result: Any) -> dict[str, float]:
    """What a metric gave, as plain numbers by plain names."""
    if not isinstance(result, Mapping):
        raise ConfigError(
            f"the metric {name!r} gives a {type(result).__name__}; let it give a dict from names "
            "to numbers."
        )
    numbers = {}
    for key, value in result.items():
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        # A number may be nan, as that of a set in which there is nothing to count.
        is_number = not math.isnan(number) or isinstance(value, float)
        if not (isinstance(key, str) and key and is_number):
            raise ConfigError(
                f"the metric {name!r} gives {key!r}: {value!r}; let it give names and numbers."
            )
        numbers[key] = number
    return numbers


_CJK = (
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    r"\u3040-\u30ff\uff66-\uff9f"  # kana
    r"\U00020000-\U0003134f"  # Han, rare
)
_CJK_LETTER = re.compile(f"[{_CJK}]")
_WORD = re.compile(f"[{_CJK}]|[^\\W_{_CJK}]+")


class _Words:
    """The words of a text in any script, as rouge-score asks for them; in ASCII its own."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def is_mostly_cjk(texts: Sequence[str]) -> bool:
    """Whether more than half of the letters of some texts are Chinese characters or kana."""
    letters = sum(character.isalpha() for text in texts for character in text)
    return sum(len(_CJK_LETTER.findall(text)) for text in texts) * 2 > letters


def _rouge(texts: list[str], references: list[str]) -> dict[str, float]:
    with quiet_imports():
        scoring = importlib.import_module("rouge_score.rouge_scorer")
    kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    scorer = scoring.RougeScorer(kinds, tokenizer=_Words())
    scores = [scorer.score(one, other) for one, other in zip(references, texts, strict=True)]
    return {kind: _mean([score[kind].fmeasure for score in scores]) for kind in kinds}


def _bleu(texts: list[str], references: list[str]) -> dict[str, float]:
    tokenize = "zh" if is_mostly_cjk(references) else "13a"
    score = importlib.import_module("sacrebleu").corpus_bleu(texts, [references], tokenize=tokenize)
    return {"bleu": score.score}


def _chrf(texts: list[str], references: list[str]) -> dict[str, float]:
    return {"chrf": importlib.import_module("sacrebleu").corpus_chrf(texts, [references]).score}


def _exact_match(
    texts: list[str], references: list[str], extract: Callable[[str], str | None]
) -> dict[str, float]:
    right = [extract(reference) for reference in references]
    if not any(right):  # There is nothing to hit.
        return {"exact_match": math.nan}
    found = map(extract, texts)
    # A reference without an answer is missed by every text.
    return {
        "exact_match": _mean(
            [one is not None and one == other for one, other in zip(found, right, strict=True)]
        )
    }


def _token_accuracy(
    texts: list[str], references: list[str], target_hits: Sequence[tuple[int, int]]
) -> dict[str, float]:
    right, every = map(sum, zip(*target_hits, strict=True)) if target_hits else (0, 0)
    return {"token_accuracy": right / every if every else math.nan}


def _auc(
    texts: list[str], references: list[str], label_probabilities: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """The mean over labels of each one against the rest; of two labels both are the same."""
    measure = importlib.import_module("sklearn.metrics").roc_auc_score
    present = sorted(set(references))
    if len(present) < 2:  # Every row has one label: there is nothing to tell apart.
        return {"auc": math.nan}
    areas = []
    for label in present:
        is_label = [reference == label for reference in references]
        areas.append(measure(is_label, [row[label] for row in label_probabilities]))
    return {"auc": _mean(areas)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


_SACREBLEU = {"sacrebleu": "sacrebleu"}
register_metric("rouge", _rouge, packages={"rouge_score": "rouge-score"})
register_metric("bleu", _bleu, packages=_SACREBLEU)
register_metric("chrf", _chrf, packages=_SACREBLEU)
register_metric("exact_match", _exact_match, needs=("extract",))
register_metric("token_accuracy", _token_accuracy, needs=("target_hits",))
register_metric("auc", _auc, needs=("label_probabilities",), packages={"sklearn": "scikit-learn"})
