"""What a format is, and how one is chosen for a row."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, TypeVar

from controlllm.common.errors import ConfigError, ControlLLMError
from controlllm.common.registry import Registry, nearest
from controlllm.data.config.columns import MissingColumnError, failure_of, listed, map_row, value_of
from controlllm.data.formats.reading import Document, Row

__all__ = ["FORMATS", "Format", "check_columns", "register_format", "to_document"]

Convert: TypeAlias = Callable[[Row], Document | None]
ConvertT = TypeVar("ConvertT", bound=Convert)


@dataclass(frozen=True)
class Format:
    """A shape of rows and the function that reads it."""

    columns: tuple[str, ...]
    """The columns by which it is recognised; none: it is only used where it is named."""
    convert: Convert
    """Row -> a text, a conversation, or None to leave the row out on purpose; raises `DataError`
    saying which column is wrong and how."""
    reads: tuple[str, ...] | None = None
    """Every column that it may read; None: unknown (a user's own format did not declare it)."""


FORMATS: Registry[Format] = Registry("format")
"""Known formats; the first registered one whose columns a row has is taken."""

_recognisable: list[str] = []


def register_format(
    name: str, *columns: str, reads: Sequence[str] | None = None
) -> Callable[[ConvertT], ConvertT]:
    """Decorate a function `row -> document` to read rows as format `name`.

    Args:
        name: what `format` of a source says.
        columns: rows that have all of these are of this format by themselves. Without any, the
            format is used only where a source names it: right for one data set's own shape.
        reads: the other columns that it may read. Then a source whose `columns` maps anything else
            is refused, for it is misspelt; without it any name may be mapped.

    Raises:
        ConfigError: the name is taken.
    """

    def keep(convert: ConvertT) -> ConvertT:
        FORMATS.register(name)(
            Format(columns, convert, None if reads is None else (*columns, *reads))
        )
        if columns:
            _recognisable.append(name)
        return convert

    return keep


def check_columns(format: str | None, columns: Mapping[str, str]) -> None:
    """Check what a source says of its format before any row is there.

    Raises:
        ConfigError: the format is not known, or no column that it reads has such a name.
    """
    if format is not None:
        _check_mapped(format, tuple(columns))
    elif all(FORMATS.get(name).reads is not None for name in _recognisable):
        _check_any(columns)


def to_document(
    row: Row,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    numbers_as_text: bool = False,
) -> Document | None:
    """Read one row.

    Args:
        row: column -> value.
        format: name of the format, None to recognise it.
        columns: the format's column -> the row's column, or a template of several.
        numbers_as_text: read numbers as they are written.

    Returns:
        A text or a list of messages; None where the format leaves the row out on purpose.

    Raises:
        ConfigError: `format` or a name in `columns` is not known.
        DataError: a column is missing, null, empty or of a wrong type, or no format fits; says
            which.
    """
    named = format is not None
    if format is None:
        format = _recognise(tuple(row), tuple(columns or ()), len(_recognisable))
    known = FORMATS.get(format)
    if columns:
        _check_mapped(format, tuple(columns), named)
    row = map_row(row, columns or {}, numbers_as_text, known.reads)
    for column in known.columns:
        value_of(row, column)
    try:
        return known.convert(row)
    except ControlLLMError:
        raise
    # Whatever a user's own function raises means that the row cannot be read.
    except Exception as error:
        raise failure_of(f"the format {format!r}", error, row) from error


@lru_cache(256)
def _recognise(row: tuple[str, ...], mapped: tuple[str, ...], known_formats: int) -> str:
    """The format that a row's columns fit; what the user mapped decides before the rest.

    Rows of a source have the same columns, so it is remembered, until another format is known.
    """
    for present in (set(mapped), {*row, *mapped}):
        for name in _recognisable:
            if present.issuperset(FORMATS.get(name).columns):
                return name
    _check_any(mapped)
    raise MissingColumnError(
        f"no format fits the columns {listed(dict.fromkeys([*row, *mapped]))}; known: "
        + "; ".join(f"{name} ({', '.join(FORMATS.get(name).columns)})" for name in _recognisable)
        + ". Map yours with `columns`, e.g. {prompt: question, completion: answer}, or name the "
        "data set's own `format`"
    )


@lru_cache(256)
def _check_mapped(format: str, mapped: tuple[str, ...], named: bool = True) -> None:
    reads = FORMATS.get(format).reads
    if reads is None or set(mapped) <= set(reads):
        return
    if not named:
        _check_any(mapped)
    _refuse_unknown(mapped, reads, f"the format {format!r}")


def _check_any(mapped: Collection[str]) -> None:
    formats = [FORMATS.get(name) for name in _recognisable]
    names = {column for known in formats for column in known.reads or known.columns}
    _refuse_unknown(mapped, sorted(names), "any format that is recognised by columns")


def _refuse_unknown(mapped: Collection[str], reads: Sequence[str], who: str) -> None:
    """Refuse a name in `columns` that no format reads: the column that was meant would be left."""
    for name in mapped:
        if name not in reads:
            raise ConfigError(
                f"columns: {name!r} is no column of {who}; allowed: {', '.join(reads)}."
                f"{nearest(name, reads)} (On the left stands the format's column, on the right "
                "the one of your rows.)"
            )
