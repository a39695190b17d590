"""What each extractor takes for an answer, and what it must not."""

import pytest

from controlllm.evaluate.texts import EXTRACTORS

last_number = EXTRACTORS.get("last_number")
after_marker = EXTRACTORS.get("after_marker")


@pytest.mark.parametrize(
    "text, number",
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18"),
        ("It is $1,234.50.", "1234.5"),
        ("so 5-3=2", "2"),
        ("minus: -7", "-7"),
        ("−7", "-7"),
        ("about 3.0 kg", "3"),
        ("18km", "18"),
        ("共有１２个", "12"),
        ("答案是42。", "42"),
        ("0.50", "0.5"),
        ("-0", "0"),
        ("007", "7"),
        ("1,000,000", "1000000"),
    ],
)
def test_last_number(text: str, number: str) -> None:
    assert last_number(text, "") == number


@pytest.mark.parametrize(
    "text", ["", "none", "x2", "version 1.2.3", "12,34", "3,5", "GPT4", "a_1", "二十"]
)
def test_what_is_no_number(text: str) -> None:
    assert last_number(text, "") is None


@pytest.mark.parametrize(
    "text, answer",
    [
        ("thinking\n#### 1,200", "1200"),
        ("#### 3\nno, wait\n#### $4.00", "4"),
        ("#### blue whale\nand more", "blue whale"),
        ("####\n 7", "7"),
        ("the answer is 7", None),
        ("#### ", None),
        ("", None),
    ],
)
def test_after_marker(text: str, answer: str | None) -> None:
    assert after_marker(text, "####") == answer


def test_whole():
    whole = EXTRACTORS.get("whole")
    assert whole(" Yes \n", "") == "Yes" and whole(" \n", "") is None
    assert whole("yes", "") != whole("Yes", "")
