"""The process that runs the tests. The solution is in another one; here it is asked by messages.

What comes back is a plain value of this process, so every comparison is made by code that the
solution cannot reach. That all tests ran to their end is said by a number that only the parent and
this process know.
"""

import builtins
import types
from collections.abc import Iterator
from typing import Any

from .wire import Channel, WireError, decode, encode

__all__ = ["judge"]


class _Raised(Exception):
    """An exception of the solution that is none of the builtin ones, or is meant to end it."""


class _NotHandedOver(Exception):
    """The tests pass something that cannot be handed over, as a function."""


class _Gone(Exception):
    """The process of the solution ended, or sent what is no answer."""


class _Kept:
    """A value that stayed with the solution: it equals only itself, and may be passed back.

    What tests do with it is done over there; what comes back is a claim like any other.
    """

    def __init__(self, solution: "_Solution", number: int, kind: str) -> None:
        vars(self).update(_solution=solution, _number=number, _kind=kind)

    def __repr__(self) -> str:
        return f"<a {self._kind} of the solution>"

    def _use(self, name: str, *arguments: Any) -> Any:
        here = {"what": "use", "number": self._number, "name": name}
        handed = [self._solution.hand_over(one) for one in arguments]
        return self._solution.ask(here | {"arguments": handed})

    def __iter__(self) -> Iterator[Any]:
        return iter(self._use("list"))

    def __bool__(self) -> bool:
        return self._use("bool") is True

    def __len__(self) -> int:
        return int(self._use("len"))

    def __getitem__(self, key: Any) -> Any:
        return self._use("item", key)

    def __call__(self, *arguments: Any) -> Any:
        return self._use("call", *arguments)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's own protocols stay here
            raise AttributeError(name)
        return self._solution.ask({"what": "get", "number": self._number, "name": name})

    def __setattr__(self, name: str, value: Any) -> None:
        here = {"what": "put", "number": self._number, "name": name}
        self._solution.ask(here | {"value": self._solution.hand_over(value)})


class _Solution:
    """The other process, as the tests see it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.raised: list[BaseException] = []
        self._there: dict[int, _Kept] = {}

    def function(self, name: str) -> Any:
        """What stands for a function, or a class, of the solution."""

        def ask(*arguments: Any, **keywords: Any) -> Any:
            return self.ask(
                {
                    "what": "call",
                    "name": name,
                    "arguments": [self.hand_over(one) for one in arguments],
                    "keywords": {key: self.hand_over(one) for key, one in keywords.items()},
                }
            )

        ask.__name__ = ask.__qualname__ = name
        return ask

    def ask(self, message: dict[str, Any]) -> Any:
        """Send a message and return the value that comes back, or raise what was raised."""
        try:
            self._channel.send(message)
        except OSError as error:
            raise _Gone(str(error)) from None
        return self.answer()

    def hand_over(self, value: Any) -> Any:
        """A value of the tests, to be sent."""
        return encode(value, self._number)

    def answer(self) -> Any:
        """The next answer."""
        try:
            answer = self._channel.receive()
            if answer is None:
                raise _Gone("it ended")
            if "raised" in answer:
                kind, base, text = map(str, answer["raised"])
            else:
                return decode(answer["value"], self._kept)
        except (WireError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise _Gone(f"its answer is no answer: {error}") from None
        self.raised.append(_exception(kind, base, text))
        raise self.raised[-1]

    def _kept(self, number: int, kind: str) -> _Kept:
        return self._there.setdefault(number, _Kept(self, number, kind))

    def _number(self, value: Any) -> int:
        if isinstance(value, _Kept):
            return value._number
        raise _NotHandedOver(f"a {type(value).__name__} cannot be handed to the solution")


def _exception(kind: str, base: str, text: str) -> Exception:
    """An exception as the solution raised it; one that would end the judge becomes another."""
    found = getattr(builtins, base, None)
    if isinstance(found, type) and issubclass(found, Exception) and kind == base:
        try:
            return found(text)
        except TypeError:  # one that is made of more than a text
            pass
    return _Raised(f"{kind}: {text}")


def judge(setup: str, tests: str, names: list[str], nonce: str, channel: Channel) -> dict[str, str]:
    """Run the tests against the solution behind the channel.

    Returns:
        `reason`, `detail`, and, if all tests ran to the end, the `nonce`.
    """
    solution = _Solution(channel)
    module = types.ModuleType("tests")
    scope = vars(module)
    try:
        before, code = compile(setup, "setup.py", "exec"), compile(tests, "tests.py", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"reason": "the tests cannot be run here", "detail": f"they do not parse: {error}"}
    try:
        solution.answer()  # its definitions
        exec(before, scope)
        scope |= {name: solution.function(name) for name in names}
        exec(code, scope)
    except BaseException as error:
        text = str(error)[:500]
        detail = f"{type(error).__name__}: {text}" if text else type(error).__name__
        if isinstance(error, _Raised):
            detail = text
        return {"reason": _reason(error, error in solution.raised), "detail": detail}
    return {"reason": "passed", "detail": "", "nonce": nonce}


def _reason(error: BaseException, of_the_solution: bool) -> str:
    """Why it did not pass, as `Reason` in `sandbox` writes it."""
    if isinstance(error, _NotHandedOver):
        return "the tests cannot be run here"
    if isinstance(error, _Gone | SystemExit):
        return "left without a verdict"
    if isinstance(error, MemoryError):
        return "memory"
    if not of_the_solution:
        return "wrong answer"
    left = isinstance(error, _Raised) and str(error).startswith(("SystemExit", "KeyboardInterrupt"))
    return "left without a verdict" if left else "raised an error"
