"""Where the numbers of a report come from: data, models, versions, commands."""

import hashlib
import shlex
from collections.abc import Mapping

from controlllm.common.text.secrets import hidden, redacted
from controlllm.evaluate.items.records import Evaluation
from controlllm.evaluate.judging import words
from controlllm.evaluate.judging.html import Child, Piece, cut, tag
from controlllm.evaluate.judging.runs import Run
from controlllm.evaluate.judging.tables import table

__all__ = ["prompts_hash", "provenance"]

MOST_SCORES = 500
MOST_CONFIG = 20_000
"""Rows and characters that are shown."""


def prompts_hash(evaluation: Evaluation, label: str, benchmark: str) -> str:
    """16 hex digits of the SHA-256 over all prompts of a benchmark, in the order of its items."""
    told = "\n".join(
        f"{item.task} {item.doc} {item.prompt}" for item in evaluation.of(label, benchmark)
    )
    return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()[:16]


def provenance(run: Run) -> list[Child]:
    """All that is known of a run's evaluations, suite by suite, and its settings."""
    told: list[Child] = []
    for evaluation in run.evaluations:
        told += [
            tag("h3", f"{run.name}, suite {evaluation.suite}"),
            _facts(evaluation.provenance),
            _benchmarks(evaluation),
            _models(evaluation),
            _scores(evaluation),
        ]
    if run.config:
        config = tag("pre", cut(run.config, MOST_CONFIG))
        told.append(tag("details", tag("summary", f"Settings of {run.name}"), config))
    return told


def _facts(facts: Mapping[str, str]) -> Child:
    if not facts:
        return tag("p", "Neither versions nor command were noted.", class_="soft")
    shown = {k: _command(v) if k == "command" else hidden(v) for k, v in facts.items()}
    return tag("dl", [[tag("dt", key), tag("dd", cut(value))] for key, value in shown.items()])


def _command(text: str) -> str:
    """The words of a command without the secrets in them."""
    try:
        words = shlex.split(text)
    except ValueError:  # An open quote: it was no command.
        return hidden(text)
    shown, key = [], ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            key = name.strip("-+").rpartition(".")[2]
            shown.append(f"{name}={redacted(value, key)}" if equals else name)
            key = "" if equals else key
        else:
            shown.append(str(redacted(word, key)))
            key = ""
    return shlex.join(shown)


def _benchmarks(evaluation: Evaluation) -> Piece:
    heads = ["benchmark", "tasks", "data", "licence", "asked", "items, seed", "prompts"]
    base = evaluation.models[0].label
    rows = []
    for asked in evaluation.benchmarks:
        shots = "shots as each task says" if asked.shots is None else f"{asked.shots} shots"
        limit = "" if asked.max_new_tokens is None else f", {asked.max_new_tokens:,} tokens at most"
        drawn = "all" if asked.sampled is None else f"{asked.sampled:,} drawn"
        metrics = {name: getattr(asked, name) for name in ("strict", "lenient", "choice")}
        read = "".join(f"; {name}: {metric}" for name, metric in metrics.items() if metric)
        cells: list[Child] = [
            tag("td", words.join(list(asked.tasks))) if asked.tasks else tag("td"),
            tag("td", asked.dataset),
            tag("td", asked.licence),
            tag("td", f"{asked.kind}, {asked.prompt} prompt, {shots}{limit}{read}"),
            tag("td", f"{drawn}, seed {asked.seed}"),
            tag("td", tag("code", prompts_hash(evaluation, base, asked.name))),
        ]
        rows.append(tag("tr", tag("th", tag("b", asked.name), scope="row", class_="name"), cells))
    return table(heads, tag("tbody", rows))


def _models(evaluation: Evaluation) -> Piece:
    rows = []
    for model in evaluation.models:
        identity = [[tag("dt", key), tag("dd", value)] for key, value in model.identity.items()]
        alpha = "as it is" if model.alpha is None else f"{model.alpha:g}"
        rows.append(
            tag(
                "tr",
                tag("th", tag("b", model.label), scope="row", class_="name"),
                tag("td", hidden(model.name), class_="long"),
                tag("td", alpha),
                tag("td", tag("dl", identity) if identity else "not noted", class_="long"),
                tag("td", _seconds(model.seconds), class_="n"),
            )
        )
    heads = ["model", "loaded from", "alpha", "identity", "seconds"]
    return table(heads, tag("tbody", rows), numeric=(4,))


def _seconds(seconds: float) -> str:
    """What answers took; where none, they were given before, which is no measure of the model."""
    return f"{seconds:,.1f}" if seconds else "answers from the store"


def _scores(evaluation: Evaluation) -> Child:
    if not evaluation.scores:
        return None
    heads = list(dict.fromkeys(str(key) for score in evaluation.scores for key in score))[:12]
    rows = [
        tag("tr", [tag("td", _score(score.get(head))) for head in heads])
        for score in evaluation.scores[:MOST_SCORES]
    ]
    count = f"{len(evaluation.scores):,} scores as lm-eval gives them"
    return tag("details", tag("summary", count), table(heads, tag("tbody", rows)))


def _score(value: object) -> str:
    return "–" if value is None else cut(str(value), 200)
