"""Threads of OpenAssistant's trees: nested or flat, all or the best, nothing lost in silence."""

from typing import Any

import pytest

from controlllm.common.errors import DataError
from controlllm.data.config.hooks import POSTPROCESS
from controlllm.data.formats import to_document
from controlllm.data.formats.oasst import oasst_best_threads, oasst_threads


def message(
    identity: str, parent: str | None, rank: int | None = None, **more: Any
) -> dict[str, Any]:
    """A row as in the Parquet files; ids of questions begin with q, those of answers with a."""
    role = "prompter" if identity.startswith("q") else "assistant"
    return {
        "message_id": identity, "parent_id": parent, "text": f"text of {identity}", "role": role,
        "lang": "en", "rank": rank, "deleted": False, "message_tree_id": "q0", **more,
    }  # fmt: skip


#  q0 --- a1 (rank 1) --- q3 --- a5
#   |                 `-- q4
#   `---- a2 (rank 0) --- q6 (no answer)
ROWS = [
    message("q0", None),
    message("a1", "q0", 1),
    message("q3", "a1", 1),
    message("a5", "q3"),
    message("q4", "a1", 0),
    message("a2", "q0", 0),
    message("q6", "a2"),
]


def ids(row: dict[str, Any]) -> list[str]:
    return [turn["content"].removeprefix("text of ") for turn in row["messages"]]


def nested(identity: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same messages as the tree files nest them."""
    own = next(row for row in rows if row["message_id"] == identity)
    replies = [
        nested(row["message_id"], rows)
        for row in rows
        if row["parent_id"] == identity and row["message_id"] != identity
    ]
    return {**own, "replies": replies}


def test_all_threads_of_a_tree() -> None:
    threads = list(oasst_threads(ROWS))
    assert [ids(row) for row in threads] == [["q0", "a1", "q3", "a5"], ["q0", "a2"]]
    assert [turn["role"] for turn in threads[0]["messages"]] == ["user", "assistant"] * 2
    assert {(row["lang"], row["message_tree_id"]) for row in threads} == {("en", "q0")}
    assert to_document(threads[1]) == threads[1]["messages"]


def test_the_order_of_rows_does_not_matter() -> None:
    again = list(oasst_threads(reversed(ROWS)))
    assert sorted(map(ids, again)) == [["q0", "a1", "q3", "a5"], ["q0", "a2"]]


def test_the_best_thread_is_that_of_the_nested_tree() -> None:
    assert [ids(row) for row in oasst_best_threads(ROWS)] == [["q0", "a2"]]
    tree = {"message_tree_id": "q0", "prompt": nested("q0", ROWS)}
    assert to_document(tree, format="oasst") == next(oasst_best_threads(ROWS))["messages"]


def test_deleted_messages_end_a_thread_and_unranked_ones_come_last() -> None:
    rows = [
        message("q0", None),
        message("a1", "q0", 0, deleted=True, text=None),
        message("q2", "a1"),
        message("a3", "q2"),
        message("a4", "q0"),
        message("a5", "q0", 1),
    ]
    assert [ids(row) for row in oasst_threads(rows)] == [["q0", "a4"], ["q0", "a5"]]
    assert [ids(row) for row in oasst_best_threads(rows)] == [["q0", "a5"]]
    tree = {"prompt": nested("q0", rows)}
    assert to_document(tree, format="oasst") == next(oasst_best_threads(rows))["messages"]


def test_a_tree_without_an_answer_is_left_out() -> None:
    rows = [message("q0", None)]
    assert list(oasst_threads(rows)) == list(oasst_best_threads(rows)) == []
    assert to_document({"prompt": nested("q0", rows)}, format="oasst") is None


BAD = [
    ([message("q0", None), message("a1", "q9")], "'a1'.*'parent_id' names 'q9'.*whole trees"),
    (
        [message("q0", None), message("q0", None)],
        "message 1.*'message_id' has 'q0' again, which an",
    ),
    ([message("", None)], "message 0: column 'message_id' is ''"),
    ([{"text": "t"}], "message 0: column 'message_id' is None"),
    ([message("q0", None), message("a1", "q0", role="prompter")], "'a1': column 'role'"),
    ([message("q0", None), message("a1", "q0", role="robot")], "'a1': 'role' is 'robot'"),
    ([message("q0", None), message("a1", "q0", text=None)], "'a1': 'text' is null"),
]


@pytest.mark.parametrize(("rows", "error"), BAD)
def test_broken_trees_are_refused(rows: list[dict[str, Any]], error: str) -> None:
    with pytest.raises(DataError, match=error):
        list(oasst_threads(rows))


def test_broken_nested_trees_are_refused() -> None:
    reply = {"text": "a", "role": "assistant"}
    bad: list[tuple[dict[str, Any], str]] = [
        (message("a1", "q0"), "postprocess: oasst_threads"),
        ({"prompt": {"text": "q", "role": "prompter", "replies": "x"}}, "'replies' is str"),
        ({"prompt": {"text": "q", "role": "prompter", "replies": [1]}}, "message 1: 1 is not"),
        ({"prompt": {"text": "q", "role": "prompter", "replies": [{**reply, "text": 3}]}},
         "message 1: 'text' is an int"),
    ]  # fmt: skip
    for row, error in bad:
        with pytest.raises(DataError, match=error):
            to_document(row, format="oasst")


def test_the_hooks_see_all_rows_in_one_process() -> None:
    for name in ("oasst_threads", "oasst_best_threads"):
        assert not POSTPROCESS.get(name).sharded
