"""What the extractors find, and what they must not take for an answer."""

import pytest

from controlllm.evaluate.items.extract import EXTRACTORS, boxed, last_line, letter, number


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 42.", "42"),
        ("... so 3 + 4 = 7\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("she earns $18 per hour, in all $1,200.50", "1200.5"),
        ("minus: -3", "-3"),
        ("it drops to −5 degrees", "-5"),
        ("7.0", "7"),
        ("-0.0", "0"),
        ("答案是 12。", "12"),
        ("007", "7"),
        # Not an answer:
        ("no number here", None),
        ("the B52 and the x2", None),
        ("version 1.2.3", None),
        ("", None),
        ("Infinity, NaN, ½, ²", None),
        ("1e400 is not read as one", None),
    ],
)
def test_numbers(text, found):
    assert number(text) == found


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
    assert letter(text) == found


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
    assert boxed(text) == found


@pytest.mark.parametrize(
    ("text", "found"), [("a\nb.\n\n", "b"), ("**No**", "No"), ("\n \n", None), ("", None)]
)
def test_last_lines(text, found):
    assert last_line(text) == found


@pytest.mark.parametrize("name", EXTRACTORS.names())
@pytest.mark.parametrize(
    "text", ["{" * 300_000, "1," * 150_000, "answer is " * 30_000, "(" * 300_000, "\n" * 300_000]
)
def test_no_text_takes_long(name, text):
    EXTRACTORS.get(name)(text)  # The time of a test is limited.


def test_the_names_that_suites_know_are_these():
    from controlllm.evaluate.suites import EXTRACTORS as known

    assert sorted(known) == EXTRACTORS.names()
