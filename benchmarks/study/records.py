"""What a cell found, beside what it was asked.

A study that trains or chooses otherwise is refused; one that tells other text tells it again.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.plan import TOLD_ON, Cell, Study

from controlllm.common.errors import ConfigError
from controlllm.common.storage.files import read_json

__all__ = [
    "RESULT",
    "Result",
    "read_result",
    "read_results",
    "read_trained",
    "write_numbers",
]

RESULT = "result.json"
Result = dict[str, Any]


def read_result(study: Study, cell: Cell, output: Path) -> Result | None:
    """What a cell found; None where it is not done, or other text was told than the study's."""
    result = read_trained(study, cell, output)
    if result is None:
        return None
    asked, found = study.of(cell), result["study"]
    # Results that do not say these were told on as many.
    as_many = {"told_sequences": found["own_sequences"], "kept_rows": found["told_rows"]}
    found = as_many | found
    return result if all(found[name] == asked[name] for name in TOLD_ON) else None


def read_trained(study: Study, cell: Cell, output: Path) -> Result | None:
    """The same, whatever is told of it (ConfigError if it was trained or chosen otherwise)."""
    path = cell.folder(output) / RESULT
    if not path.is_file():
        return None
    result: Result = read_json(path)
    asked = study.of(cell)
    for name, value in result["study"].items():
        if name not in TOLD_ON and value != asked.get(name):
            raise ConfigError(
                f"{path} was found by another study: {name} was {value!r}, is {asked.get(name)!r}. "
                "Choose another --output, or another name for the arm."
            )
    return result


def read_results(study: Study, output: Path) -> list[Result]:
    """What the study's cells found, as far as they are done."""
    found = (read_result(study, cell, output) for cell in study.cells())
    return [result for result in found if result is not None]


def write_numbers(results: Sequence[Result], path: Path) -> None:
    """A table of what was found: a row for each cell and setting; base, loss and KL of each set.

    It says what a page tells; what a cell was asked stands in its own file.
    """
    own = ("shift", "arm", "rate", "seed")
    numbers = ("base", "loss", "kl")
    sets = {name: None for r in results for at in r["settings"].values() for name in at["sets"]}
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*own, "setting", "dial", *(f"{s} {n}" for s in sets for n in numbers)])
        for result in results:
            for setting, at in result["settings"].items():
                row = [*(result[name] for name in own), setting, _short(at["dial"])]
                row += [_short(at["sets"].get(s, {}).get(n)) for s in sets for n in numbers]
                table.writerow(row)


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.5g}"
