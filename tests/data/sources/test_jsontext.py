"""JSON that is cut value by value says what `json` says, wherever pieces of it end."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlllm.common.errors import DataError
from controlllm.data.sources import jsonlist
from controlllm.data.sources.jsonlist import JsonText
from controlllm.data.sources.lines import parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def elements(data: bytes, piece: int, most: int = 10**6) -> list[Any]:
    """The elements of a list, read in pieces of so many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonlist, "_PIECE", piece)
        text, found = JsonText(io.BytesIO(data), most), []
        for _, spelling in text.elements():
            found.append("left out" if spelling is None else parse_json(spelling))
        text.take(b"")
        return found


@given(st.lists(VALUES, max_size=6), st.integers(1, 9), st.sampled_from([None, 1]), st.booleans())
def test_elements_are_those_of_json(
    values: list[Any], piece: int, indent: int | None, ascii_only: bool
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    assert (
        elements(data.encode(errors="surrogatepass" if ascii_only else "strict"), piece) == values
    )


@given(st.lists(VALUES, min_size=1, max_size=6), st.integers(1, 9))
def test_what_is_too_long_is_left_out_and_the_rest_is_read(values: list[Any], piece: int) -> None:
    spelt = [json.dumps(value) for value in values]
    found = elements(f"[{', '.join(spelt)}]".encode(), piece, most=20)
    for value, spelling, element in zip(values, spelt, found, strict=True):
        assert element == value or (element == "left out" and len(spelling) > 20 - 9)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[1,\n {"a" 2}]', "Expecting ':' delimiter: line 1 column 6"),
        (b'[1, "a', "the file ends within a value, at byte 4"),
        (b'["' + b"x" * 40, "the file ends within a value"),
        (b'["' + b"x" * 40 + b"\\", "the file ends within a value"),
        (b"[1] 2", "the end of the file is expected, not '2', at byte 4"),
        (b"[1 2]", "',' is expected, not '2', at byte 3"),
        (b"[1, ]", "a value is expected, not ']', at byte 4"),
        (b'["a", "\xff"]', "not valid UTF-8 .* at byte 1"),
        (b"[" * 10**5 + b"]" * 10**5, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        elements(data, 3 if len(data) < 100 else 10**4, most=20 if len(data) < 100 else 10**6)
