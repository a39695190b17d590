"""Rows of every known shape become documents; anything odd is refused with its column."""

from typing import Any

import pytest

from controlllm.common.errors import ConfigError, DataError
from controlllm.data.formats import (
    FORMATS,
    base,
    check_columns,
    read_messages,
    register_format,
    to_document,
)


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


QA = turns(("user", "q"), ("assistant", "a"))
GOOD: list[tuple[dict[str, Any], dict[str, str], Any]] = [
    ({"text": "t"}, {}, "t"),
    ({"body": "a", "title": "x"}, {"text": "body"}, "a"),
    ({"paragraphs": ["a", "b"], "title": "x"}, {"text": "paragraphs"}, "a\nb"),
    ({"prompt": "q", "completion": "a"}, {}, QA),
    ({"prompt": QA[:1], "completion": QA[1:]}, {}, QA),
    ({"prompt": QA[:1], "completion": "a"}, {}, QA),
    ({"prompt": "q", "chosen": QA, "rejected": None}, {}, QA),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, {}, QA),
    ({"prompt": QA[:1], "chosen": QA[1:], "rejected": []}, {}, QA),
    ({"chosen": QA, "rejected": QA[:1]}, {}, QA),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "messages": QA + QA}, {}, QA + QA),
    ({"question": "q", "answer": "5"}, {"prompt": "question", "completion": "answer"},
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
    ({"messages": turns(("developer", "d"), ("user", "q"), ("tool", "t"))}, {},
     turns(("developer", "d"), ("user", "q"), ("tool", "t"))),
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
    ({"text": True}, {}, "'text' holds a bool, not text"),
    ({"text": 7}, {}, "'text' holds an int, not text"),
    ({"text": 7.5}, {}, "'text' holds a float, not text"),
    ({"text": {"a": 1}}, {}, "'text' holds a dict"),
    ({"text": ["a", 1]}, {}, "'text' holds a list"),
    ({"text": []}, {}, "'text' is empty"),
    ({"question": ["a", "b"], "answer": "c"}, {"format": "gsm8k"}, "'question' holds a list"),
    ({"prompt": "q", "completion": 5}, {}, "'completion' holds an int"),
    ({"prompt": "q", "completion": ["a", "b"]}, {}, "'completion' holds a list"),
    ({"instruction": "q", "input": 5, "output": "a"}, {}, "'input' holds an int"),
    ({"question": "q", "answer": 5}, {"format": "gsm8k"}, "'answer' holds an int"),
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
    ({"instruction": "q", "output": "a", "history": "x"}, {}, "'history' holds a str"),
    ({"messages": []}, {}, "'messages' is an empty list"),
    ({"messages": "[{"}, {}, "'messages' is not valid JSON"),
    ({"messages": ["hi"]}, {}, "message 0: 'hi'"),
    ({"messages": [{"content": "x"}]}, {}, "message 0"),
    ({"messages": [{"role": "user", "content": 3}]}, {}, "message 0: 'content' is an int"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, {}, "no text"),
    ({"conversations": [{"from": "alien", "value": "x"}]}, {}, "role 'alien' is not known; known"),
    ({"conversations": [{"from": "gtp", "value": "x"}]}, {}, "turn 0.*mean 'gpt'"),
    ({"conversations": [{"from": "human"}]}, {}, "'value' is null"),
    ({"conversations": turns(("human", "x"))}, {}, "role 'human' .* mean 'user'"),
    ({"messages": turns(("user", "q"), ("gpt", "a"))}, {}, "message 1: the role 'gpt' is not .*"
     r"known: system, .*\. Did you mean 'assistant'\?"),
    ({"messages": turns(("human", "q"))}, {}, "'human' is not known.* mean 'user'"),
    ({"messages": turns(("assistantt", "q"))}, {}, "'assistantt' is not known.* mean 'assistant'"),
    ({"messages": turns(("User", "q"))}, {}, "'User' is not known.* mean 'user'"),
    ({"prompt": turns(("critic", "q")), "completion": "a"}, {}, "the role 'critic' is not known"),
    ({"answr": "a", "question": "q"}, {"columns": {"prompt": "question", "completion": "answer"}},
     r"'answer', named in `columns`, is missing \(the row has 'answr', 'question'; "
     r"did you mean 'answr'\?\)"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "settings", "message"), BAD)
def test_hostile_rows(row: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_document(row, **settings)


def test_unknown_formats_are_corrected() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'sharegpt'"):
        to_document({"text": "t"}, format="share_gpt")


WRONG_MAPS: list[tuple[str | None, dict[str, str], str]] = [
    (None, {"prmopt": "a", "completion": "b"}, "'prmopt' is no column .* mean 'prompt'"),
    (None, {"text": "a", "history": "b"}, "'history' is no column of the format 'text'; .*: text"),
    (None, {"text": "a", "titl": "b"}, "'titl' is no column of any format that is recognised"),
    ("gsm8k", {"questionn": "a"}, "'questionn' .*'gsm8k'; allowed: question, answer.*'question'"),
    ("alpaca", {"outputs": "a"}, "'outputs' is no column of the format 'alpaca'.* mean 'output'"),
    ("prompt_completion", {"system": "a"}, "'system' is no column of the format"),
]


@pytest.mark.parametrize(("name", "columns", "message"), WRONG_MAPS)
def test_a_map_to_what_no_format_reads_is_refused(
    name: str | None, columns: dict[str, str], message: str
) -> None:
    """Also where the row would fit a format without it: what was mapped would not be read."""
    row = {"a": "x", "b": "y", "text": "t", "question": "q", "answer": "a"}
    with pytest.raises(ConfigError, match=message):
        to_document(row, format=name, columns=columns)


def test_misspelt_names_are_told_before_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [name for name in base._recognisable if not name.startswith("test_")]
    monkeypatch.setattr(base, "_recognisable", own)  # Without formats that tests have registered.
    with pytest.raises(ConfigError, match=r"'questionn' is no column .* mean 'question'"):
        check_columns("gsm8k", {"questionn": "a"})
    with pytest.raises(ConfigError, match=r"'prmopt' .* recognised by columns.* mean 'prompt'"):
        check_columns(None, {"prmopt": "a"})
    with pytest.raises(ConfigError, match="format='gsm8' is not known"):
        check_columns("gsm8", {})
    check_columns(None, {"prompt": "a", "history": "b"})  # Which format it is, a row will tell.


def test_formats_that_do_not_tell_what_they_read_take_any_map() -> None:
    @register_format("test_open", "test_first")
    def read(row: Any) -> str:
        return f"{row['test_first']}{row['test_second']}"

    @register_format("test_closed", "test_only", reads=("test_more",))
    def read_more(row: Any) -> str:
        return f"{row['test_only']}{row.get('test_more')}"

    row = {"a": "x", "b": "y"}
    check_columns(None, {"test_first": "a", "test_second": "b"})
    assert to_document(row, columns={"test_first": "a", "test_second": "b"}) == "xy"
    assert to_document(row, "test_open", {"test_first": "a", "test_second": "b"}) == "xy"
    assert to_document(row, columns={"test_only": "a", "test_more": "b"}) == "xy"
    with pytest.raises(ConfigError, match=r"'test_mor' is no column .* mean 'test_more'"):
        to_document(row, columns={"test_only": "a", "test_mor": "b"})


def test_roles_of_a_format_of_ones_own() -> None:
    row = {"messages": turns(("critic", "q"))}
    assert read_messages(row, "messages", roles=None) == row["messages"]
    assert read_messages(row, "messages", roles=("critic", "user")) == row["messages"]
    with pytest.raises(DataError, match="'critic' is not known; known: user, actor"):
        read_messages(row, "messages", roles=("user", "actor"))


def test_a_wide_row_does_not_flood_the_message() -> None:
    with pytest.raises(DataError, match=r"'c19' and 480 more; did you mean 'c400'\?") as caught:
        to_document({f"c{i}": "x" for i in range(500)}, "text", {"text": "c_400"})
    assert len(str(caught.value)) < 400


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
