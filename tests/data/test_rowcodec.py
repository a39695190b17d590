"""Rows that go through a file between ranks come out as they went in."""

import enum
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlllm.common.errors import DataError
from controlllm.data.cache.postprocess import decode_row, encode_row


def unfolded(moment: Any) -> Any:
    """Which of two equal times of a night in autumn is not in the ISO form."""
    return moment.replace(fold=0)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.dates() | st.datetimes().map(unfolded) | st.times().map(unfolded)
    | st.timedeltas() | st.decimals(allow_nan=False) | st.uuids(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner)
    | st.dictionaries(st.text() | st.integers() | st.just("$bytes"), inner),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
def test_plain_values_come_back_with_their_types(value: Any) -> None:
    again = decode_row(encode_row({"column": value}))["column"]
    assert again == value and repr(again) == repr(value)


def test_dates_with_zones_and_arrays() -> None:
    row = {"at": datetime(2024, 1, 2, tzinfo=UTC), "n": np.float32(0.1), "a": np.arange(3)}
    again = decode_row(encode_row(row))
    assert again["at"] == row["at"] and again["at"].tzinfo is not None
    assert again["n"] == row["n"] and type(again["n"]) is np.float32
    assert again["a"].tolist() == [0, 1, 2] and again["a"].dtype == np.arange(3).dtype
    assert decode_row(encode_row([date(2024, 1, 2), time(3), timedelta(1)]))[2] == timedelta(1)
    assert decode_row(encode_row((Decimal("1.50"), UUID(int=7))))[0] == Decimal("1.50")


@pytest.mark.parametrize("value", [object(), {1, 2}, enum.Enum("Odd", "a").a, np.array([None])])
def test_what_is_not_plain_is_named(value: Any) -> None:
    with pytest.raises(DataError, match=f"a {type(value).__name__} is no plain value"):
        encode_row({"column": value})
