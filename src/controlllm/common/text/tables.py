"""Tables for people: the same text reads well in a terminal and renders as Markdown."""

import math
from collections.abc import Sequence

from controlllm.common.text.readable import readable

__all__ = ["format_number", "format_table"]

LARGEST = 1e9
"""From here on a float is written with its exponent."""


def format_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An aligned Markdown table: text to the left, numbers to the right.

    Args:
        headers: one per column.
        rows: cells; floats are written with three decimals, None as "-".
    """
    headers = [_cell(header) for header in headers]
    texts = [[_cell(format_number(cell)) for cell in row] for row in rows]
    columns = list(zip(headers, *texts, strict=True))
    numeric = [bool(rows) and all(map(_is_numeric, column[1:])) for column in columns]
    widths = [max(3, *map(len, column)) for column in columns]
    aligned = zip(widths, numeric, strict=True)
    rule = ["-" * (width - right) + ":" * right for width, right in aligned]
    lines = [_line(headers, widths, numeric), _line(rule, widths, numeric)]
    return "\n".join(lines + [_line(row, widths, numeric) for row in texts])


def format_number(cell: object, signed: bool = False) -> str:
    """One cell as text; `signed` writes the plus of positive numbers, for differences."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        if math.isnan(cell):
            return "nan"  # without a sign
        if math.isfinite(cell) and abs(cell) >= LARGEST:
            return f"{cell:{'+' if signed else ''}.3e}"
        rounded = round(cell, 3) + 0.0  # adding 0.0 turns -0.0 into 0.0
        return f"{rounded:{'+' if signed else ''}.3f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return str(cell)


def _cell(text: str) -> str:
    """One line without a border of the table's, whatever a stranger called his set."""
    return readable(" ".join(text.split())).replace("|", "\\|")


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    aligned = zip(cells, widths, right, strict=True)
    return "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in aligned) + " |"


def _is_numeric(text: str) -> bool:
    return text == "-" or text.lstrip("+-").replace(",", "")[:1].isdigit() or text in ("inf", "nan")
