"""Rows of every known shape become documents; anything odd is refused with its column."""

from typing import Any

import pytest

from controlllm.common.errors import ConfigError, DataError
from controlllm.data.formats import FORMATS, register_format, to_document


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


QA = turns(("user", "q"), ("assistant", "a"))
GOOD: list[tuple[dict[str, Any], dict[str, str], Any]] = [
    ({"text": "t"}, {}, "t"),
    ({"paragraphs": ["a", "b"], "title": "x"}, {"text": "paragraphs"}, "a\nb"),
    ({"prompt": "q", "completion": "a"}, {}, QA),
    ({"prompt": QA[:1], "completion": QA[1:]}, {}, QA),
    ({"prompt": QA[:1], "completion": "a"}, {}, QA),
    ({"prompt": "q", "chosen": QA, "rejected": None}, {}, QA),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, {}, QA),
    ({"prompt": QA[:1], "chosen": QA[1:], "rejected": []}, {}, QA),
    ({"chosen": QA, "rejected": QA[:1]}, {}, QA),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "messages": QA + QA}, {}, QA + QA),
    ({"question": "q", "answer": 5}, {"prompt": "question", "completion": "answer"},
     turns(("user", "q"), ("assistant", "5"))),
    ({"messages": QA}, {}, QA),
    ({"messages": '[{"role": "user", "content": "q"}]'}, {}, QA[:1]),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, {}, QA[:1]),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [1], "name": None}]}, {},
     [{"role": "assistant", "content": "", "tool_calls": [1]}]),
    ({"messages": QA, "text": "t"}, {}, QA),
    ({"messages": QA, "body": "t"}, {"text": "body"}, "t"),
    ({"instruction": "q", "output": "a"}, {}, QA),
    ({"instruction": "q", "input": "", "output": "a", "history": "", "system": None}, {}, QA),
    ({"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["x", "y"]]}, {},
     turns(("system", "s"), ("user", "x"), ("assistant", "y"), ("user", "q\ni"),
           ("assistant", "a"))),
    ({"instruction": "q", "input": "", "response": "a"}, {"output": "response"}, QA),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, {}, QA),
    ({"conversations": QA, "system": "s"}, {}, turns(("system", "s")) + QA),
]  # fmt: skip


@pytest.mark.parametrize(("row", "columns", "document"), GOOD)
def test_known_shapes(row: dict[str, Any], columns: dict[str, str], document: Any) -> None:
    assert to_document(row, columns=columns) == document


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"a": 1, "b": 2}, {}, "no format fits the columns 'a', 'b'"),
    ({}, {}, "no format fits the columns none"),
    ({"text": None}, {}, "'text' is null"),
    ({"text": ""}, {}, "'text' is empty"),
    ({"text": " \n"}, {}, "only white space"),
    ({"text": True}, {}, "'text' is a bool"),
    ({"text": {"a": 1}}, {}, "'text' is a dict"),
    ({"text": ["a", 1]}, {}, "'text' is a list"),
    ({"prompt": "q", "completion": None}, {}, "'completion' is null"),
    ({"question": "q"}, {"columns": {"prompt": "question", "completion": "answer"}},
     "'answer', named in `columns`, is missing"),
    ({"instruction": "q"}, {"format": "alpaca"}, "'output' is missing"),
    ({"question": "q"}, {"format": "gsm8k"}, r"'answer' is missing \(the row has 'question'\)"),
    ({"chosen": "a", "rejected": "b"}, {}, "'prompt' is missing"),
    ({"chosen": [], "rejected": []}, {}, "'chosen'"),
    ({"chosen": [{"role": "user"}], "rejected": []}, {}, "'chosen', message 0: 'content'"),
    ({"prompt": [{"role": 1}], "completion": "a"}, {}, "'prompt', message 0"),
    ({"instruction": "q", "output": "a", "history": [["x"]]}, {}, "'history', item 0"),
    ({"instruction": "q", "output": "a", "history": "x"}, {}, "'history' is a str"),
    ({"messages": []}, {}, "'messages' is an empty list"),
    ({"messages": "[{"}, {}, "'messages' is not valid JSON"),
    ({"messages": ["hi"]}, {}, "message 0: 'hi'"),
    ({"messages": [{"content": "x"}]}, {}, "message 0"),
    ({"messages": [{"role": "user", "content": 3}]}, {}, "message 0: 'content' is int"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, {}, "no text"),
    ({"conversations": [{"from": "alien", "value": "x"}]}, {}, "'from' is 'alien'"),
    ({"conversations": [{"from": "human"}]}, {}, "'value' is NoneType"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "settings", "message"), BAD)
def test_hostile_rows(row: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_document(row, **settings)


def test_unknown_formats_are_corrected() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'sharegpt'"):
        to_document({"text": "t"}, format="share_gpt")


def test_a_new_format_joins_by_one_function() -> None:
    @register_format("test_dialogue", "summary", "dialogue")
    def read(row: Any) -> str | None:
        return f"{row['dialogue']} = {row['summary']}" if row["summary"] else None

    assert "test_dialogue" in FORMATS.names()
    assert to_document({"dialogue": "d", "summary": "s"}) == "d = s"
    assert to_document({"dialogue": "d", "summary": ""}) is None


def test_a_format_without_columns_is_never_recognised() -> None:
    @register_format("test_by_name")
    def read(row: Any) -> str:
        return str(row["body"])

    assert to_document({"body": "b"}, format="test_by_name") == "b"
    with pytest.raises(DataError, match="no format fits the columns 'body'"):
        to_document({"body": "b"})


def test_data_set_formats_change_nothing_of_what_is_recognised() -> None:
    """Only the shared shapes have columns, so a new data set can never take another's rows."""
    own = [name for name in FORMATS.names() if not name.startswith("test_")]
    recognised = {name for name in own if FORMATS.get(name).columns}
    assert recognised == {
        *("messages", "sharegpt", "alpaca", "prompt_completion", "preference", "text")
    }
    tatsu = {"instruction": "q", "input": "", "output": "a", "text": "Below is ..."}
    assert to_document(tatsu) == QA


def test_what_tables_write_for_no_value_is_no_text() -> None:
    nan = float("nan")
    with pytest.raises(DataError, match="'text' is null"):
        to_document({"text": nan})
    document = to_document({"instruction": "a", "input": nan, "output": "b"})
    assert document == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
