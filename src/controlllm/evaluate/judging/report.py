"""The report: one page that stands alone, to be sent to people who decide.

Nothing in it is fetched, run or sent, whatever models and data sets wrote: see `html`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controlllm.common.registry import check_choice
from controlllm.evaluate.judging import pictures, words
from controlllm.evaluate.judging.examples import flipped_items, sample_texts
from controlllm.evaluate.judging.gate import Gate
from controlllm.evaluate.judging.html import REPORT, Child, Piece, is_page, page, tag
from controlllm.evaluate.judging.models import Model, compared_models, main_models
from controlllm.evaluate.judging.own_text import own_text_table
from controlllm.evaluate.judging.provenance import provenance
from controlllm.evaluate.judging.ruling import Judgement, judge
from controlllm.evaluate.judging.runs import Run
from controlllm.evaluate.judging.style import STYLE
from controlllm.evaluate.judging.tables import capability_table, gate_table, overview_table
from controlllm.evaluate.statistics import Verdict

__all__ = ["ReportSettings", "is_report", "report_page"]

MEANS = {
    Verdict.PASS: "may be shipped by the gate",
    Verdict.FAIL: "must not be shipped by the gate",
    Verdict.INCONCLUSIVE: "cannot be judged by the gate yet",
}


@dataclass(frozen=True)
class ReportSettings:
    """What a report shows.

    Attributes:
        gate: rules that each run is judged by; None = no verdict is given.
        learned: benchmarks that were meant to be learned; none = those that the gate asks gains of.
        model: label of the judged model; None = "tuned", or the only one beside the base.
        examples: flipped items that are shown of each benchmark.
    """

    gate: Gate | None = None
    learned: tuple[str, ...] = ()
    model: str | None = None
    examples: int = 10


def is_report(path: str | Path) -> bool:
    """Whether a file begins as the pages do that `report_page` makes."""
    return is_page(path, REPORT)


def report_page(runs: Sequence[Run], settings: ReportSettings | None = None) -> str:
    """The whole page as HTML.

    Args:
        runs: side by side, on one base.
        settings: what is shown.

    Raises:
        ConfigError: the gate, `learned` or `model` names something that is not there.
        DataError: models were not asked the same.
    """
    settings = settings or ReportSettings()
    models = compared_models(runs)
    main = main_models(runs, models, settings.model)
    judged = _judged(runs, settings)
    learned = _learned(models, settings)
    sections = [
        ("outcome", "Outcome", _outcome(models)),
        ("gate", "Gate", _gate(judged, settings)),
        ("plane", "Learned and lost", _planes(runs, models, learned)),
        ("capabilities", "Capabilities", _capabilities(models, main)),
        ("own", "How far it moved", _own_text(runs)),
        ("dial", "The dial", _dials(runs, models)),
        ("training", "In training", _curves(runs)),
        ("flipped", "Items that flipped", _flipped(main, settings.examples)),
        ("samples", "Texts from training", _samples(runs)),
        ("provenance", "Where the numbers come from", [provenance(run) for run in runs]),
    ]
    shown = [(place, title, parts) for place, title, parts in sections if parts]
    title = f"Report on {words.join([run.name for run in runs])}"
    return page(title, STYLE, _verdicts(runs, main, judged), shown)


def _judged(runs: Sequence[Run], settings: ReportSettings) -> dict[str, Judgement]:
    if settings.gate is None:
        return {}
    return {
        run.name: judge(run.evaluations, settings.gate, settings.model)
        for run in runs
        if run.evaluations
    }


def _learned(models: Sequence[Model], settings: ReportSettings) -> tuple[str, ...]:
    names = {row.change.benchmark.name for model in models for row in model.rows}
    for name in settings.learned:
        check_choice("learned", name, names)
    if settings.learned or settings.gate is None:
        return settings.learned
    return tuple(rule.benchmark for rule in settings.gate.rules if rule.kind == "at_least")


def _verdicts(
    runs: Sequence[Run], main: Sequence[Model], judged: dict[str, Judgement]
) -> list[Piece]:
    """For each run the verdict and its reason, in words that need no statistics."""
    models = {model.run: model for model in main}
    boxes = []
    for run in runs:
        if run.name not in models:
            told: list[Child] = [tag("p", tag("b", run.name), " was asked no benchmark.")]
            boxes.append(tag("div", told, class_="verdict"))
            continue
        model, judgement = models[run.name], judged.get(run.name)
        lines = [tag("p", words.sentence(model))]
        look = ""
        if judgement is not None:
            look = words.LOOKS[judgement.verdict]
            head = [words.word(judgement.verdict), " ", tag("b", model.name)]
            because = f" {MEANS[judgement.verdict]}: {judgement.reason}."
            lines.insert(0, tag("p", head, because))
        if run.note:
            lines.append(tag("p", f"{run.note}.", class_="soft"))
        boxes.append(tag("div", lines, class_=f"verdict {look}".rstrip()))
    return boxes


def _outcome(models: Sequence[Model]) -> list[Child]:
    if len(models) < 2:
        return []
    told = (
        "What became of each benchmark, and the difference from the base of the reading that "
        "decided, or of its first one; coloured where it is sure (95 %)."
    )
    return [tag("p", told, class_="soft"), overview_table(models)]


def _gate(judged: dict[str, Judgement], settings: ReportSettings) -> list[Child]:
    if settings.gate is None:
        return []
    correction = (
        "each rule judged by itself, which is right where all must hold"
        if settings.gate.correction == "none"
        else "Holm's correction over all rules"
    )
    told: list[Child] = [
        tag(
            "p",
            f"One-sided confidence {settings.gate.level:g}, {correction}. A rule passes where its "
            "whole interval keeps to what is asked, and fails where no part of it does.",
            class_="soft",
        )
    ]
    for name, judgement in judged.items():
        title = tag("h3", f"{name}: {judgement.model}") if len(judged) > 1 else None
        told += [title, gate_table(judgement)]
    return told


def _planes(runs: Sequence[Run], models: Sequence[Model], learned: Sequence[str]) -> list[Child]:
    told: list[Child] = []
    if learned:
        benchmarks = pictures.learn_forget_plane(models, learned)
        if benchmarks is not None:
            note = f"To be learned: {words.join(list(learned))}. Kept: every other benchmark."
            told.append(tag("p", f"{note} Means over benchmarks, 95 %.", class_="soft"))
    else:
        benchmarks = None
        if models:
            note = "To see benchmarks here, say which were to be learned: --learned, or a gate."
            told.append(tag("p", note, class_="soft"))
    planes = [plane for plane in (benchmarks, pictures.sets_plane(runs)) if plane is not None]
    return [*told, tag("div", planes, class_="plots")] if planes else []


def _capabilities(models: Sequence[Model], main: Sequence[Model]) -> list[Child]:
    if not models:
        return []
    legend = (
        "Strict: right, and written as the task asks. Lenient: right, wherever it stood. Choice: "
        "the right choice was the likeliest. Bits per byte: what the model needs to write the "
        "right answer; fewer are better. Differences of rates are in points; green is surely "
        "better, red surely worse (95 %, paired on the same items). p: McNemar's exact test, by "
        "Holm's correction over all benchmarks of the model."
    )
    told: list[Child] = [tag("p", legend, class_="soft")]
    for model in models:
        body = capability_table(model)
        if len(models) == 1:
            told.append(body)
        else:
            summary = tag("summary", model.name)
            told.append(tag("details", summary, body, open=model in main))
    return told


def _own_text(runs: Sequence[Run]) -> list[Child]:
    told: list[Child] = []
    for run in runs:
        if found := own_text_table(run):
            told += [tag("h3", run.name) if len(runs) > 1 else None, found]
            told.append(tag("div", [*pictures.own_text_curves(run)], class_="plots"))
    if not told:
        return []
    legend = (
        "On text that a model wrote itself (the base; behind a slash, the earlier stage) the rise "
        "of the loss is KL(that model || this one), in nats per token. Its bound is one-sided, "
        "95 %, with sequences as the independent units; total variation is how much probability "
        "moved at a token on average, at most. About such text only, and about no other copy of "
        "the model (quantised, collapsed)."
    )
    return [tag("p", legend, class_="soft"), *told]


def _dials(runs: Sequence[Run], models: Sequence[Model]) -> list[Child]:
    told: list[Child] = []
    for run in runs:
        own = [model for model in models if model.run == run.name]
        figures = [*pictures.benchmark_dials(own)]
        if run.calibration is not None:
            figures.append(pictures.calibration_curve(run.calibration))
        if figures:
            title = tag("h3", run.name) if len(runs) > 1 else None
            told += [title, tag("div", figures, class_="plots")]
    return told


def _curves(runs: Sequence[Run]) -> list[Child]:
    told: list[Child] = []
    for run in runs:
        if figures := [*pictures.loss_curves(run), *pictures.text_curves(run)]:
            title = tag("h3", run.name) if len(runs) > 1 else None
            told += [title, tag("div", figures, class_="plots")]
    return told


def _flipped(main: Sequence[Model], most: int) -> list[Child]:
    if not most:
        return []
    told: list[Child] = []
    for model in main:
        if found := flipped_items(model, most):
            told += [tag("h3", model.name) if len(main) > 1 else None, found]
    return told


def _samples(runs: Sequence[Run]) -> list[Child]:
    told: list[Child] = []
    for run in runs:
        if found := sample_texts(run):
            told += [tag("h3", run.name) if len(runs) > 1 else None, found]
        if run.unread:
            note = f"Rows of {run.name}/generation with other fields, not shown: {run.unread:,}."
            told.append(tag("p", note, class_="soft"))
    return told
