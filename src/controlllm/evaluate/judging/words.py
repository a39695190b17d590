"""Numbers and outcomes as people read them, and the class that gives each its look."""

from collections import Counter
from collections.abc import Iterable

from controlllm.evaluate.items.comparison import Change, Outcome, Reading
from controlllm.evaluate.items.records import READINGS
from controlllm.evaluate.judging.gate import Rule
from controlllm.evaluate.judging.html import Child, Piece, tag
from controlllm.evaluate.judging.models import Model, deciding
from controlllm.evaluate.statistics import Interval, Verdict

__all__ = [
    "NAMES",
    "asked",
    "benchmark_names",
    "change_of",
    "difference",
    "interval",
    "join",
    "look",
    "p_value",
    "percent",
    "sentence",
    "value",
    "word",
]

NAMES = {
    "strict": "strict",
    "lenient": "lenient",
    "choice": "choice",
    "bits_per_byte": "bits per byte",
    "in_format": "in the format",
    "cut_off": "cut off",
}
LOOKS: dict[str, str] = {
    Verdict.PASS: "good",
    Verdict.FAIL: "bad",
    Verdict.INCONCLUSIVE: "open",
    Outcome.GAINED: "good",
    Outcome.KEPT: "",
    Outcome.FORMAT_LOST: "open",
    Outcome.KNOWLEDGE_LOST: "bad",
}
ASKED = {"not_below": "not below", "at_least": "at least", "not_above": "not above"}


def word(verdict: Verdict | Outcome) -> Piece:
    """A verdict or an outcome as a coloured word."""
    return tag("strong", verdict.value, class_=f"word {LOOKS[verdict]}".rstrip())


def look(reading: Reading) -> str:
    """Good or bad where a reading surely changed, else open."""
    return "good" if reading.rose else "bad" if reading.fell else "open"


def percent(share: float) -> str:
    """A share, with one decimal."""
    return f"{100 * share:.1f} %"


def value(name: str, number: float) -> str:
    """A reading's or a share's value."""
    return percent(number) if READINGS.get(name, True) else f"{number:.3f}"


def difference(name: str, number: float) -> str:
    """How far a reading is above the base's: in points, or in bits per byte."""
    text = f"{100 * number:+.1f}" if READINGS.get(name, True) else f"{number:+.3f}"
    return _minus(text)


def interval(name: str, found: Interval, is_share: bool = False) -> str:
    """Both ends of an interval of a difference, or of a share."""
    told = percent if is_share else lambda number: difference(name, number)
    return f"{told(found.low)} to {told(found.high)}"


def p_value(number: float | None) -> str:
    """A p-value with what is worth saying of it."""
    if number is None:
        return "–"
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


def asked(rule: Rule) -> str:
    """A rule's bound with its unit."""
    if rule.share is not None:
        return f"{ASKED[rule.kind]} {100 * rule.bound:g} %"
    if READINGS[rule.what]:
        return _minus(f"{ASKED[rule.kind]} {100 * rule.bound:+g} points")
    return _minus(f"{ASKED[rule.kind]} {rule.bound:+g} bits per byte")


def change_of(change: Change) -> str:
    """The reading that decided on a benchmark, and how far it is above the base's."""
    reading = deciding(change)
    if reading is None:
        return ""
    unit = " points" if READINGS[reading.name] else ""
    return f"{NAMES[reading.name]} {difference(reading.name, reading.difference.mean)}{unit}"


def benchmark_names(places: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What benchmarks are called, by suite and name: with the suite where several have the name."""
    known = dict.fromkeys(places)
    count = Counter(name for _, name in known)
    return {
        (suite, name): name if count[name] == 1 else f"{name} of suite {suite}"
        for suite, name in known
    }


def sentence(model: Model) -> list[Child]:
    """What a model gained and lost, for somebody who reads one sentence only."""
    told = {
        Outcome.GAINED: "gained on",
        Outcome.KNOWLEDGE_LOST: "lost knowledge on",
        Outcome.FORMAT_LOST: "lost the answer format, not the knowledge, on",
        Outcome.KEPT: "shows no sure change on",
    }
    called = benchmark_names((row.suite, row.change.benchmark.name) for row in model.rows)
    parts: list[Child] = []
    for outcome, verb in told.items():
        names = [
            _with_change(called[row.suite, row.change.benchmark.name], row.change)
            for row in model.rows
            if row.change.outcome is outcome
        ]
        if names:
            parts += ["; " if parts else " ", verb, " ", join(names)]
    return [tag("b", model.name), *parts, "."]


def join(names: list[str], most: int = 8) -> str:
    """Names as a list within a sentence."""
    names = names if len(names) <= most else [*names[:most], f"{len(names) - most} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _with_change(name: str, change: Change) -> str:
    return name if change.outcome is Outcome.KEPT else f"{name} ({change_of(change)})"


def _minus(text: str) -> str:
    """The sign of a negative number as long as a plus; nothing is written as minus nothing."""
    return "0.0" if text in ("-0.0", "+0.0") else text.replace("-", "−")
