"""OpenAssistant's message trees, as nested rows or as single messages that a hook joins."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from controlllm.common.errors import DataError
from controlllm.data.config.hooks import PostprocessContext, register_postprocess
from controlllm.data.formats.base import register_format
from controlllm.data.formats.reading import Document, Message, Row, message_content

__all__ = ["oasst", "oasst_best_threads", "oasst_threads"]

ROLES = {"prompter": "user", "assistant": "assistant"}


@register_format("oasst", reads=("prompt",))
def oasst(row: Row) -> Document | None:
    """`OpenAssistant/oasst1` and `OpenAssistant/oasst2`, their files `*_ready.trees.jsonl.gz`.

    A row is a tree: column `prompt` holds the first message, `{"text", "role": "prompter" |
    "assistant", "rank", "deleted", "replies": [...], ...}`, and so on down. Makes the thread of the
    best-ranked replies (rank 0 is best, null comes last), up to its last answer; a tree without any
    answer is left out.

    The Parquet files of the same data sets hold one message in a row; there, say
    `postprocess: oasst_threads` (all threads) or `oasst_best_threads`, and no format.

    Raises:
        DataError: the column is missing, or a message in it is damaged; says which.
    """
    if row.get("prompt") is None:
        fault = "null" if "prompt" in row else "missing"
        if "message_id" in row:
            fault += (
                ": these are single messages; say `postprocess: oasst_threads`, and no `format`"
            )
        raise DataError(f"column 'prompt' is {fault}")
    node: Any = row["prompt"]
    thread: list[Message] = []
    while node is not None:
        where = f"column 'prompt', message {len(thread)}"
        thread.append(_message(node, where))
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise DataError(f"{where}: 'replies' is {type(replies).__name__}, not a list")
        node = _best(replies)
    return _until_last_answer(thread) or None


@register_postprocess("oasst_threads", sharded=False)
def oasst_threads(rows: Iterable[Row], _: PostprocessContext | None = None) -> Iterator[Row]:
    """Join single messages to threads: one row for each way down a tree that ends in an answer.

    Threads of one tree share their beginnings, so early answers come several times. Deleted
    messages and what answers them are left out. All rows are held in memory, since nothing says
    that a parent comes first.

    Args:
        rows: messages with columns `message_id`, `parent_id` (null at the first message), `text`,
            `role`, and optionally `rank`, `deleted`, `lang`, `message_tree_id`.

    Yields:
        Rows with `messages`, `lang` and `message_tree_id` of the tree.

    Raises:
        DataError: a message's column is wrong, or its parent is not among the rows.
    """
    for root, children in _trees(rows):
        for thread in _ways_down(root, children):
            yield _joined(root, thread)


@register_postprocess("oasst_best_threads", sharded=False)
def oasst_best_threads(rows: Iterable[Row], _: PostprocessContext | None = None) -> Iterator[Row]:
    """As `oasst_threads`, but of each tree only the thread of its best-ranked replies.

    Raises:
        DataError: as `oasst_threads` does.
    """
    for root, children in _trees(rows):
        thread: list[Message] = []
        node: Any = root
        while node is not None:
            thread.append(_read(node))
            node = _best(children.get(node["message_id"], []))
        if thread := _until_last_answer(thread):
            yield _joined(root, thread)


Children = Mapping[str, list[Row]]


def _trees(rows: Iterable[Row]) -> Iterator[tuple[Row, Children]]:
    """Every first message, with the replies to each message (deleted ones left out)."""
    known: dict[str, Row] = {}
    for number, row in enumerate(rows):
        identity = row.get("message_id")
        if not isinstance(identity, str) or not identity:
            raise DataError(f"message {number}: column 'message_id' is {identity!r}, not an id")
        if identity in known:
            raise DataError(
                f"message {number}: column 'message_id' has {identity!r} again, "
                "which an earlier message has"
            )
        known[identity] = row
    children: dict[str, list[Row]] = defaultdict(list)
    roots: list[Row] = []
    for row in known.values():
        if row.get("deleted"):
            continue
        parent = row.get("parent_id")
        if parent is None:
            roots.append(row)
            continue
        if parent not in known:
            raise DataError(
                f"{_name(row)}: column 'parent_id' names {parent!r}, which is not among the rows; "
                "give whole trees"
            )
        if _role(row, _name(row)) == _role(known[parent], _name(known[parent])):
            raise DataError(
                f"{_name(row)}: column 'role' is {row.get('role')!r}, as in the message that it "
                "answers; the two must alternate"
            )
        children[parent].append(row)
    return ((root, children) for root in roots)


def _ways_down(root: Row, children: Children) -> Iterator[list[Message]]:
    """Every thread from a first message to an answer that no other answer follows."""
    waiting: list[list[Row]] = [[root]]
    while waiting:
        path = waiting.pop()
        replies = children.get(path[-1]["message_id"], [])
        waiting += [[*path, reply] for reply in reversed(replies)]
        if path[-1].get("role") == "assistant" and not any(
            children.get(reply["message_id"]) for reply in replies
        ):
            yield list(map(_read, path))


def _best(replies: Sequence[Any]) -> Any:
    """The best-ranked reply that is not deleted, None if there is none."""

    def rank(reply: Any) -> float:
        found = reply.get("rank") if isinstance(reply, Mapping) else None
        return found if isinstance(found, int | float) else float("inf")

    alive = (one for one in replies if not (isinstance(one, Mapping) and one.get("deleted")))
    return min(alive, key=rank, default=None)


def _read(row: Row) -> Message:
    return _message(row, _name(row))


def _name(row: Row) -> str:
    return f"message {row.get('message_id')!r}"


def _role(node: Mapping[str, Any], where: str) -> str:
    role = ROLES.get(str(node.get("role")))
    if role is None:
        raise DataError(f"{where}: 'role' is {node.get('role')!r}; known: {', '.join(ROLES)}")
    return role


def _message(node: Any, where: str) -> Message:
    if not isinstance(node, Mapping):
        raise DataError(f"{where}: {node!r} is not a mapping with 'text' and 'role'")
    return {"role": _role(node, where), "content": message_content(node, "text", where)}


def _until_last_answer(thread: list[Message]) -> list[Message]:
    while thread and thread[-1]["role"] != "assistant":
        thread = thread[:-1]
    return thread


def _joined(root: Row, thread: list[Message]) -> Row:
    tree = root.get("message_tree_id") or root["message_id"]
    return {"messages": thread, "lang": root.get("lang"), "message_tree_id": tree}
