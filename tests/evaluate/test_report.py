import math

import pytest

from controlllm.common.text.tables import format_number
from controlllm.evaluate import RetentionReport, format_table, losses_table


def test_text_to_the_left_numbers_to_the_right():
    assert format_table(["name", "loss"], [["a", 1.23456], ["bcdef", None]]).splitlines() == [
        "| name  |  loss |",
        "| ----- | ----: |",
        "| a     | 1.235 |",
        "| bcdef |     - |",
    ]


def test_a_table_without_rows():
    assert format_table(["a"], []).splitlines() == ["| a   |", "| --- |"]


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.5, True, "+0.500"),
        (-0.0001, False, "0.000"),
        (-0.5, True, "-0.500"),
        (1234567, False, "1,234,567"),
        (math.inf, False, "inf"),
        ("word", False, "word"),
    ],
)
def test_numbers(value, signed, text):
    assert format_number(value, signed) == text


def test_losses_side_by_side():
    report = RetentionReport(base_loss=2.0, loss=2.5, kl=0.125, tokens=1000)
    head, _, row = losses_table({"stories": report}).splitlines()
    assert "difference" in head
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["stories", "1,000", "2.000", "2.500", "+0.500", "7.389", "12.182", "0.125"]
