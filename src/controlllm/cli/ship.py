"""`controlllm ship`: PASS, FAIL or INCONCLUSIVE by the rules of a gate, from stored items.

| exit code | meaning |
|---|---|
| 0 | PASS: all rules hold |
| 1 | an error: there is no evaluation, or it is damaged |
| 2 | FAIL: a rule is broken |
| 3 | the command or the gate is wrong |
| 4 | INCONCLUSIVE: no rule is surely broken, but these items cannot tell of all |
"""

from dataclasses import dataclass
from pathlib import Path

from controlllm.cli.kit.parsing import parse_options
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.storage.files import read_json, require_writable, write_json
from controlllm.common.text.tables import format_table
from controlllm.evaluate.judging.gate import read_gate
from controlllm.evaluate.judging.ruling import Judgement, Ruling, judge, judged_model
from controlllm.evaluate.judging.runs import asked_in_training, read_evaluations
from controlllm.evaluate.statistics import Verdict

__all__ = ["ShipOptions", "error_code", "run"]

CODES = {Verdict.PASS: 0, Verdict.FAIL: 2, Verdict.INCONCLUSIVE: 4}
ERROR, USAGE = 1, 3


@dataclass
class ShipOptions:
    """Judge a run by a gate; the items of its evaluations are read, no model is loaded.

    The exit code is 0 for PASS, 2 for FAIL, 4 for INCONCLUSIVE, 3 for a wrong command or gate, 1
    for any other error.
    """

    run: str
    """Run folder with evaluations (`controlllm eval RUN --suite`), or one evaluation's folder."""
    gate: str | None = None
    """YAML file of rules (docs/judging.md)."""
    model: str | None = None
    """Label of the judged model; null = "tuned", or the only one beside the base."""
    json: str | None = None
    """JSON file to write the verdict and the rules to."""


def run(argv: list[str]) -> int:
    """Print the rules and the verdict."""
    options = parse_options(ShipOptions, argv, "ship", models=False)
    if options.gate is None:
        raise ConfigError("ship needs rules to judge by: --gate FILE.yaml (docs/judging.md).")
    if options.json is not None:
        _require_place(options.json, options.gate)
    gate = read_gate(options.gate)
    evaluations = read_evaluations(options.run)
    judgement = judge(evaluations, gate, options.model)
    print(_table(judgement))
    if note := asked_in_training(options.run):
        print(note)
    judged = {ruling.rule.suite for ruling in judgement.rulings}
    for evaluation in (one for one in evaluations if one.suite in judged):
        label = judged_model(evaluation, options.model)
        name = next(model.name for model in evaluation.models if model.label == label)
        print(f"suite {evaluation.suite}: {label} is {name}")
    correction = "each rule by itself" if gate.correction == "none" else "Holm over all rules"
    print(f"one-sided confidence {gate.level:g}, {correction}")
    print(f"{judgement.verdict.value}: {judgement.reason}.")
    if options.json is not None:
        told = {"level": gate.level, "correction": gate.correction}
        write_json(options.json, {"run": options.run, **told, **judgement.to_dict()})
    return CODES[judgement.verdict]


def error_code(error: Exception) -> int:
    """The exit code of an error: whether the words and the gate were wrong, or something else."""
    return USAGE if isinstance(error, ConfigError) else ERROR


def _require_place(path: str, gate: str) -> None:
    """Check that a verdict may be written there: over an earlier one, and no other file."""
    require_writable(path)
    if Path(path).resolve() == Path(gate).resolve():
        raise ConfigError(f"json={path!r} is the gate itself; choose another name.")
    if not Path(path).is_file():
        return
    try:
        known = read_json(path)
    except CheckpointError:
        known = None
    if not (isinstance(known, dict) and {"verdict", "rules"} <= known.keys()):
        raise ConfigError(f"json={path!r} exists and is no verdict of ours; choose another name.")


def _table(judgement: Judgement) -> str:
    headers = ["suite", "benchmark", "what", "value", "interval", "asked", "items", "verdict"]
    headers.append("items to decide")
    return format_table(headers, [_row(one) for one in judgement.rulings])


def _row(ruling: Ruling) -> list[object]:
    rule, value = ruling.rule, ruling.value
    sign = "+" if rule.reading is not None else ""
    asked = {"not_below": "not below", "at_least": "at least", "not_above": "not above"}
    need = ruling.items_to_decide
    return [
        rule.suite,
        rule.benchmark,
        rule.what,
        f"{value.estimate:{sign}.4f}",
        f"[{value.low:{sign}.4f}, {value.high:{sign}.4f}]",
        f"{asked[rule.kind]} {rule.bound:{sign}g}",
        ruling.num_items,
        ruling.verdict.value,
        None if need is None else f"about {need:,}",
    ]
