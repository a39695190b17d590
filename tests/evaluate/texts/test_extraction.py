"""What each extractor takes for an answer, and what it must not."""

import pytest

from controlllm.evaluate.texts import EXTRACTORS

last_number = EXTRACTORS.get("last_number")
after_marker = EXTRACTORS.get("after_marker")
letter, boxed, last_line = map(EXTRACTORS.get, ("letter", "boxed", "last_line"))


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
    "text",
    ["", "none", "x2", "version 1.2.3", "12,34", "3,5", "GPT4", "a_1", "二十", "1e400", "½²"],
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


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        (" (C)", "C"),
        ("**D**", "D"),
        ("The best answer is B.", "B"),
        ("answer: (A)", "A"),
        ("Both A and B look right, but the answer is C because of D", "C"),
        ("答案：D", "D"),
        ("C. the third one", "C"),
        ("I think so.\nA", "A"),
        ("The answer is A", "A"),
        ("the answer is B, not A", "B"),
        # Not an answer:
        ("A man walks into a bar", None),
        ("The answer is A man", None),
        ("I would say that is right", None),
        ("The answer is not B", None),
        ("Because", None),
        ("A. one\nB. two\nC. three", None),
        ("Answer: Berlin", None),
        ("the answer is AB", None),
        ("", None),
        ("K", None),
    ],
)
def test_letters(text, found):
    assert letter(text, "") == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{3}", "3"),
        (r"\boxed{1} then \boxed{\sqrt{2}}", r"\sqrt{2}"),
        (r"\fbox{x}", "x"),
        (r"\boxed{3", None),
        (r"\boxed{}", None),
        (r"boxed{3}", None),
        ("3", None),
    ],
)
def test_boxes(text, found):
    assert boxed(text, "") == found


@pytest.mark.parametrize(
    ("text", "found"), [("a\nb.\n\n", "b"), ("**No**", "No"), ("\n \n", None), ("", None)]
)
def test_last_lines(text, found):
    assert last_line(text, "") == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2 + 2 is 4. So the answer is 4.", "4"),
        ("So the answer is (C).\n\nQ: something else", "(C)"),
        ("not ( True ) is False. The answer is False", "False"),
        ("True", "True"),
        ("the answer is", "the answer is"),
        ("The answer is A, no, the answer is B.", "B"),
        ("", None),
    ],
)
def test_answers_after_the_phrase(text, found):
    assert EXTRACTORS.get("answer")(text, "") == found


@pytest.mark.parametrize("name", EXTRACTORS.names())
@pytest.mark.parametrize(
    "text", ["{" * 300_000, "1," * 150_000, "answer is " * 30_000, "(" * 300_000, "\n" * 300_000]
)
def test_no_text_takes_long(name, text):
    EXTRACTORS.get(name)(text, "####")  # The time of a test is limited.
