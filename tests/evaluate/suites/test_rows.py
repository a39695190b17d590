"""Rows of llm-foundry become those of the hub; what is none of them is told with its number."""

import pytest

from controlllm.common.errors import ConfigError
from controlllm.evaluate.suites.rows import FORMS, read_rows

FOUNDRY = {
    "arc": {"query": "Question: Hot?", "choices": ["ice", "fire"], "gold": 1},
    "boolq": {"query": "Passage: P\nQuestion: q?", "choices": ["no", "yes"], "gold": 1},
    "commonsense_qa": {
        "query": "Question: Q?\nChoices:\nA. a b\nB. c\nC. d\nD. e\nAnswer:",
        "choices": ["A", "B", "C", "D"],
        "gold": 2,
    },
    "copa": {"query": "He ran, because", "choices": ["he could.", "it rained."], "gold": 0},
    "lambada": {"context": "A b", "continuation": "c"},
    "openbookqa": {"query": "Cats", "choices": ["bark", "meow"], "gold": 1},
    "piqa": {"query": "Question: Boil\n", "choices": ["heat", "cool"], "gold": 0},
    "winogrande": {
        "context_options": [
            "Sam saw the pen because the pen",
            "Sam saw the pen because the pencil",
        ],
        "continuation": "is red.",
        "gold": 1,
    },
}
HUB = {
    "arc": {
        "question": "Hot?",
        "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "boolq": {"passage": "P", "question": "q", "label": 1},
    "commonsense_qa": {
        "question": "Q?",
        "choices": {"text": ["a b", "c", "d", "e"], "label": ["A", "B", "C", "D"]},
        "answerKey": "C",
    },
    "copa": {
        "premise": "He ran.",
        "question": "cause",
        "choice1": "he could.",
        "choice2": "it rained.",
        "label": 0,
    },
    "lambada": {"text": "A b c"},
    "openbookqa": {
        "question_stem": "Cats",
        "choices": {"text": ["bark", "meow"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "piqa": {"goal": "Boil", "sol1": "heat", "sol2": "cool", "label": 0},
    "winogrande": {
        "sentence": "Sam saw the pen because the _ is red.",
        "option1": "pen",
        "option2": "pencil",
        "answer": "2",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_each_form(write_rows, form):
    assert list(read_rows(write_rows("x.jsonl.gz", [FOUNDRY[form]] * 2), form)) == [HUB[form]] * 2


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("arc", {"query": "Hot?"}),
        ("arc", {"gold": 2}),
        ("arc", {"gold": "1"}),
        ("boolq", {"choices": ["yes", "no"]}),
        ("commonsense_qa", {"query": "Question: Q?\nChoices:\nA. a\nC. b\nAnswer:"}),
        ("copa", {"choices": ["one", "two", "three"]}),
        ("copa", {"query": "He ran, and"}),
        ("lambada", {"continuation": "two words"}),
        ("piqa", {"query": None}),
        ("winogrande", {"context_options": ["a_b c", "a_b d"]}),
    ],
)
def test_rows_of_another_form(write_rows, form, change):
    path = write_rows("x.jsonl", [FOUNDRY[form], FOUNDRY[form] | change])
    with pytest.raises(ConfigError, match=r"x\.jsonl, row 2 is not as this file's rows are"):
        list(read_rows(path, form))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": ', "row 2 is no JSON"),
        ("x.jsonl", "[" * 100_000, "row 1 is no JSON"),
        ("x.jsonl", "3\n", "row 1 is not as"),
        ("x.jsonl", '"' + "x" * 2**22 + '"', "row 1 is longer than any question"),
        ("x.jsonl", "null\n", "row 1 is not as"),
        ("x.csv", "a,b\n1\n", "more or fewer cells"),
        ("x.csv", "a,b\n1,2,3\n", "more or fewer cells"),
        ("x.csv", 'a,b\n"1,2\n', "is no table"),
        ("x.csv", "a\n" + "x" * (2**20 + 1), "is no table"),
    ],
)
def test_files_that_are_broken(write_rows, name, text, told):
    with pytest.raises(ConfigError, match=told):
        list(read_rows(write_rows(name, text), None))


def test_a_packed_file_that_is_cut_short(write_rows):
    path = write_rows("x.jsonl.gz", [FOUNDRY["piqa"]] * 1000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="is no JSON"):
        list(read_rows(path, "piqa"))


def test_cells_stay_texts(write_rows):
    path = write_rows("x.csv", '\ufeffa,b\n0.50,"two\nlines"\n007,NA\n')
    expected = [{"a": "0.50", "b": "two\nlines"}, {"a": "007", "b": "NA"}]
    assert list(read_rows(path, None)) == expected
