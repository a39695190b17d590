"""Who speaks in a conversation: the roles that are known, and what others call them."""

from collections.abc import Collection

from controlllm.common.errors import DataError
from controlllm.common.registry import nearest_name

__all__ = ["ROLES", "check_role"]

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""The roles of messages, as chat templates know them (`ipython` is Llama 3's for tools)."""

_ELSEWHERE = {
    **dict.fromkeys(("human", "prompter", "customer", "question"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "chatbot", "model", "ai", "answer"), "assistant"),
    "function_call": "assistant",
    "observation": "tool",
}
"""Names that other data sets give them; only for advice, never for a guess."""


def check_role(role: str, roles: Collection[str], where: str) -> None:
    """Check who speaks: nothing would ever be learned from the turns of a misspelt role.

    Args:
        role: as the row has it.
        roles: those that are known.
        where: how errors call its place.

    Raises:
        DataError: it is none of them; with the nearest.
    """
    if role in roles:
        return
    plain = role.strip().lower()
    near = _ELSEWHERE.get(plain) or nearest_name(plain, roles)
    hint = f" Did you mean {near!r}?" if near in roles else ""
    raise DataError(f"{where}: the role {role!r} is not known; known: {', '.join(roles)}.{hint}")
