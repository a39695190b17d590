"""The process that holds the solution: it defines it, and answers calls with what comes back.

Whatever the solution does in here (exits, prints, replaces builtins or this very code), all that
it can bring about is an answer, which the judge compares on its side; or none.
"""

import operator
import sys
import types
from collections.abc import Callable
from typing import Any

from .wire import Channel, WireError, decode, encode

__all__ = ["work"]


_USES: dict[str, Callable[..., Any]] = {
    "list": list,
    "bool": bool,
    "len": len,
    "item": operator.getitem,
    "call": lambda function, *arguments: function(*arguments),
}
"""What tests do with a value that stayed here."""


def work(solution: str, channel: Channel) -> None:
    """Run the solution's definitions, say how that went, and answer calls until nobody asks."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    kept: list[Any] = []
    numbers: dict[int, int] = {}

    def keep(value: Any) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(kept)
            kept.append(value)
        return numbers[id(value)]

    def find(number: int, _: str) -> Any:
        return kept[number]

    def define(_: dict[str, Any]) -> None:
        exec(compile(solution, "solution.py", "exec"), vars(module))

    def call(message: dict[str, Any]) -> Any:
        arguments = [decode(one, find) for one in message["arguments"]]
        keywords = {name: decode(one, find) for name, one in message["keywords"].items()}
        if message["name"] not in vars(module):
            raise NameError(f"name {message['name']!r} is not defined")
        return vars(module)[message["name"]](*arguments, **keywords)

    def use(message: dict[str, Any]) -> Any:
        arguments = [decode(one, find) for one in message["arguments"]]
        return _USES[message["name"]](kept[message["number"]], *arguments)

    def get(message: dict[str, Any]) -> Any:
        return getattr(kept[message["number"]], message["name"])

    def put(message: dict[str, Any]) -> None:
        setattr(kept[message["number"]], message["name"], decode(message["value"], find))

    can = {"define": define, "call": call, "use": use, "get": get, "put": put}
    asked: dict[str, Any] | None = {"what": "define"}
    while asked is not None:
        what = can[asked["what"]]
        _answer(channel, lambda what=what, asked=asked: encode(what(asked), keep))
        asked = channel.receive()


def _answer(channel: Channel, value: Any) -> None:
    """Send a value, or how it failed."""
    try:
        message = {"value": value()}
    except BaseException as error:
        message = _failure(error)
    try:
        channel.send(message)
    except WireError as error:
        channel.send(_failure(error))


def _failure(error: BaseException) -> dict[str, Any]:
    """An exception by its type's name, that of the builtin one it is made of, and its text."""
    bases = [base.__name__ for base in type(error).__mro__ if base.__module__ == "builtins"]
    try:
        text = str(error)[:500]
    except BaseException:
        text = "its text cannot be had"
    return {"raised": [type(error).__name__[:100], bases[0], text]}
