"""Rows of files that are not as the hub has them, written with the hub's fields.

The sets of MosaicML's llm-foundry have a prompt in their rows (`query`, `choices`, `gold`); what it
was made of is taken out of it again, so that lm-eval's own tasks ask it in their way.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from controlllm.common.errors import ConfigError

__all__ = ["FORMS", "read_rows"]

Row = Mapping[str, Any]
_LONGEST = 2**20
"""Characters of a row, and of a cell of a table."""
_LETTERS = "ABCDEFGHIJ"


def read_rows(path: Path, form: str | None) -> Iterator[dict[str, Any]]:
    """The rows of a file, one after the other.

    Args:
        path: JSON lines (`.jsonl`, `.jsonl.gz`) or a table with a first row of names (`.csv`).
        form: what the rows are like, one of `FORMS`; None = they are taken as they are.

    Raises:
        ConfigError: a row is none of that form: with the file and the row's number.
    """
    rows = _table(path) if path.suffix == ".csv" else _lines(path)
    change = FORMS[form] if form is not None else dict
    for number, row in enumerate(rows, start=1):
        try:
            yield change(row)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{path}, row {number} is not as this file's rows are ({type(error).__name__}: "
                f"{error}); see docs/suites.md."
            ) from error


def _lines(path: Path) -> Iterator[Any]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        number = 0
        try:
            while line := file.readline(4 * _LONGEST):
                number += 1
                if len(line) >= 4 * _LONGEST:
                    raise ConfigError(f"{path}, row {number} is longer than any question.")
                if line.strip():
                    yield json.loads(line)
        except (OSError, EOFError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, row {number or 1} is no JSON ({error}).") from error


def _table(path: Path) -> Iterator[dict[str, str]]:
    """Each cell stays a text: a reader that guesses types makes 0.50 to 0.5."""
    csv.field_size_limit(_LONGEST)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for row in csv.DictReader(file, strict=True):
                if None in row or None in row.values():
                    raise ConfigError(f"{path}: a row has more or fewer cells than the first.")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no table in CSV ({error}).") from error


def _after(text: str, begin: str) -> str:
    if not text.startswith(begin):
        raise ValueError(f"its query does not begin with {begin!r}")
    return text.removeprefix(begin)


def _lettered(texts: list[str], gold: int) -> dict[str, Any]:
    letters = list(_LETTERS[: len(texts)])
    return {"choices": {"text": texts, "label": letters}, "answerKey": letters[gold]}


def _arc(row: Row) -> dict[str, Any]:
    question = _after(row["query"], "Question: ")
    return {"question": question, **_lettered(row["choices"], row["gold"])}


def _boolq(row: Row) -> dict[str, Any]:
    passage, _, question = _after(row["query"], "Passage: ").rpartition("\nQuestion: ")
    if row["choices"] != ["no", "yes"]:
        raise ValueError("its choices are not no and yes")
    return {
        "passage": passage,
        "question": question.removesuffix("?"),
        "label": range(2)[row["gold"]],
    }


def _commonsense_qa(row: Row) -> dict[str, Any]:
    question, _, listed = _after(row["query"], "Question: ").partition("\nChoices:\n")
    lines = listed.removesuffix("\nAnswer:").split("\n")
    texts = [_after(line, f"{_LETTERS[place]}. ") for place, line in enumerate(lines)]
    return {"question": question, **_lettered(texts, row["gold"])}


def _copa(row: Row) -> dict[str, Any]:
    premise, _, word = row["query"].rpartition(" ")
    first, second = row["choices"]
    return {
        "premise": premise.removesuffix(",") + ".",
        "question": {"because": "cause", "therefore": "effect"}[word],
        "choice1": first,
        "choice2": second,
        "label": row["gold"],
    }


def _lambada(row: Row) -> dict[str, Any]:
    if " " in row["continuation"]:
        raise ValueError("it asks for more than one word")
    return {"text": f"{row['context']} {row['continuation']}"}


def _openbookqa(row: Row) -> dict[str, Any]:
    return {"question_stem": row["query"], **_lettered(row["choices"], row["gold"])}


def _piqa(row: Row) -> dict[str, Any]:
    first, second = row["choices"]
    goal = _after(row["query"], "Question: ").removesuffix("\n")
    return {"goal": goal, "sol1": first, "sol2": second, "label": row["gold"]}


def _winogrande(row: Row) -> dict[str, Any]:
    first, second = row["context_options"]
    pairs = enumerate(zip(first, second, strict=False))
    length = next((place for place, (one, other) in pairs if one != other), len(first))
    same = first[: first[:length].rfind(" ") + 1]
    if "_" in same:
        raise ValueError("it has a gap before its gap")
    return {
        "sentence": f"{same}_ {row['continuation']}",
        "option1": first[len(same) :],
        "option2": second[len(same) :],
        "answer": str(row["gold"] + 1),
    }


FORMS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "arc": _arc,
    "boolq": _boolq,
    "commonsense_qa": _commonsense_qa,
    "copa": _copa,
    "lambada": _lambada,
    "openbookqa": _openbookqa,
    "piqa": _piqa,
    "winogrande": _winogrande,
}
"""How a row of a set of llm-foundry becomes one of the hub's."""
