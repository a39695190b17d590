"""Tables of a report: capabilities with their readings, models side by side, and a gate's rules."""

from collections.abc import Iterator, Sequence

from controlllm.evaluate.items.comparison import Change, Reading
from controlllm.evaluate.items.records import READINGS
from controlllm.evaluate.judging import words
from controlllm.evaluate.judging.html import Child, Piece, tag
from controlllm.evaluate.judging.models import Model, Row, deciding
from controlllm.evaluate.judging.ruling import Judgement, Ruling
from controlllm.evaluate.judging.svg import bar

__all__ = ["capability_table", "gate_table", "overview_table", "table"]

HEADS = ("reading", "base", "model", "difference", "95 % interval", "", "p (Holm)")
NUMBERS = (1, 2, 3, 6)


def table(heads: Sequence[str], *bodies: Child, numeric: Sequence[int] = ()) -> Piece:
    """A table that scrolls inside itself where the page is narrow.

    Args:
        heads: of the columns.
        bodies: `tbody` elements.
        numeric: numbers of the columns that hold numbers.
    """
    cells = [
        tag("th", head, scope="col", class_="n" if number in numeric else None)
        for number, head in enumerate(heads)
    ]
    whole = tag("table", tag("thead", tag("tr", cells)), bodies)
    return tag("div", whole, class_="scroll", tabindex=0)


def capability_table(model: Model) -> Piece:
    """Per benchmark: its outcome, each reading of base and model, and what is sure of it."""
    reach = {better: _reach(model, better) for better in (True, False)}
    bodies = [_benchmark(row, reach) for row in model.rows]
    return table(HEADS, bodies, numeric=NUMBERS)


def overview_table(models: Sequence[Model]) -> Piece:
    """Benchmarks down, models across: the outcome, and the difference of what decided."""
    names = list(dict.fromkeys(_key(row) for model in models for row in model.rows))
    called = words.benchmark_names(names)
    rows = []
    for name in names:
        cells: list[Child] = [tag("th", called[name], scope="row", class_="name")]
        for model in models:
            row = next((row for row in model.rows if _key(row) == name), None)
            cells.append(tag("td", "–" if row is None else _overview(row.change), class_="t"))
        rows.append(tag("tr", cells))
    return table(["benchmark", *(model.name for model in models)], tag("tbody", rows))


def gate_table(judgement: Judgement) -> Piece:
    """One row per rule: what was found, what was asked, and the verdict."""
    heads = ["verdict", "benchmark", "what", "found", "interval", "asked", "items", "to decide"]
    rows = [_ruling(one) for one in judgement.rulings]
    return table(heads, tag("tbody", rows), numeric=(3, 6, 7))


def _key(row: Row) -> tuple[str, str]:
    return row.suite, row.change.benchmark.name


def _overview(change: Change) -> list[Child]:
    reading = deciding(change)
    told: list[Child] = [words.word(change.outcome)]
    if reading is not None:
        told.append(
            tag("span", f" {words.change_of(change)}", class_=f"{words.look(reading)}-text")
        )
    return told


def _reach(model: Model, better: bool) -> float:
    """The value at the ends of all bars of one unit."""
    ends = [0.0]
    for row in model.rows:
        for name, reading in row.change.readings.items():
            if READINGS[name] is better:
                found = reading.difference.interval()
                ends += [abs(found.low), abs(found.high), abs(found.estimate)]
    return max((end for end in ends if end < float("inf")), default=0.0) or 1.0


def _benchmark(row: Row, reach: dict[bool, float]) -> Piece:
    change = row.change
    rows = [
        [*_reading(reading, reach[READINGS[name]]), _p_value(row, name)]
        for name in READINGS
        if (reading := change.readings.get(name)) is not None
    ]
    rows += [*_shares(change)]
    about = tag("th", tag("div", _about(row), class_="about"), scope="rowgroup", colspan=len(HEADS))
    return tag("tbody", tag("tr", about), [tag("tr", cells) for cells in rows])


def _about(row: Row) -> list[Child]:
    asked = row.change.benchmark
    chance = f" · chance {words.percent(asked.chance)}" if asked.chance else ""
    return [
        tag("b", asked.name),
        " ",
        words.word(row.change.outcome),
        f" {row.change.reason}",
        tag("div", f"{len(row.change.items):,} items{chance} · suite {row.suite}", class_="soft"),
    ]


def _reading(reading: Reading, reach: float) -> list[Child]:
    name, found, seen = reading.name, reading.difference.interval(), words.look(reading)
    return [
        tag("td", words.NAMES[name], class_="t"),
        tag("td", words.value(name, reading.base), class_="n"),
        tag("td", words.value(name, reading.value), class_="n"),
        tag("td", words.difference(name, found.estimate), class_=f"n {seen}-text"),
        tag("td", words.interval(name, found), class_="t"),
        tag("td", bar(found, reach, seen)),
    ]


def _p_value(row: Row, name: str) -> Piece:
    return tag("td", words.p_value(row.p_values[name]), class_="n")


def _shares(change: Change) -> Iterator[list[Child]]:
    for name in ("in_format", "cut_off"):
        found = getattr(change, name)
        if found is not None:
            base, model = found
            yield [
                tag("td", words.NAMES[name], class_="t"),
                tag("td", words.percent(base), class_="n"),
                tag("td", words.percent(model), class_="n"),
                tag("td", words.difference(name, model - base), class_="n"),
                tag("td"),
                tag("td"),
                tag("td"),
            ]


def _ruling(ruling: Ruling) -> Piece:
    rule, found, need = ruling.rule, ruling.value, ruling.items_to_decide
    told = words.value if rule.share is not None else words.difference
    return tag(
        "tr",
        tag("td", words.word(ruling.verdict), class_="t"),
        tag("th", tag("b", rule.benchmark), f" (suite {rule.suite})", scope="row", class_="name"),
        tag("td", words.NAMES[rule.what], class_="t"),
        tag("td", told(rule.what, found.estimate), class_="n"),
        tag("td", words.interval(rule.what, found, rule.share is not None), class_="t"),
        tag("td", words.asked(rule), class_="t"),
        tag("td", f"{ruling.num_items:,}", class_="n"),
        tag("td", "–" if need is None else f"about {need:,} items", class_="n"),
    )
