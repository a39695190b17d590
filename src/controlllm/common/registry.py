"""Names to things, with the nearest name when a name is wrong."""

import difflib
import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from controlllm.common.errors import ConfigError

__all__ = ["Registry", "check_choice", "few", "nearest", "nearest_name"]

T = TypeVar("T")

_MOST_NAMED = 40
"""Names that a message lists: somebody is to read it."""


def check_choice(field: str, value: object, allowed: Iterable[str], is_open: bool = False) -> None:
    """Check that `value` is one of `allowed`; `is_open` = users' own code may register more.

    Raises:
        ConfigError: with the field, the value, what is allowed and the nearest name.
    """
    names = sorted(allowed)
    if value in names:
        return
    known = ", ".join(names) or "none is registered yet"
    if len(names) > _MOST_NAMED:
        known = f"one of {len(names):,} names"
    own = " Register a name of your own first (docs/extending/index.md)." if is_open else ""
    raise ConfigError(
        f"{field}={value!r} is not known; allowed: {known}.{nearest(value, names)}{own}"
    )


def nearest(value: object, names: Iterable[str]) -> str:
    """` Did you mean 'x'?` where a name is near, else nothing; to end a message with."""
    near = nearest_name(str(value), names, 0.5)
    return "" if near is None else f" Did you mean {near!r}?"


def nearest_name(value: str, names: Iterable[str], likeness: float = 0.6) -> str | None:
    """The name that is most like a value; None where none is."""
    return next(iter(difflib.get_close_matches(value, list(names), n=1, cutoff=likeness)), None)


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "none"


class Registry(Generic[T]):
    """A dict from names to things of one kind, filled by a decorator.

    The names `reserved` are known before the module that registers them is imported. `home` names
    that module if the registry is to import it by itself, when a thing is first asked for.
    """

    def __init__(self, kind: str, reserved: Iterable[str] = (), home: str | None = None) -> None:
        self.kind = kind
        self.reserved = tuple(reserved)
        self.home = home
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate a class or function to make it known as `name`.

        Raises:
            ConfigError: if the name is taken by something else.
        """

        def keep(thing: T) -> T:
            if self._things.setdefault(name, thing) is not thing:
                raise ConfigError(
                    f"{self.kind}={name!r} is registered already; choose another name."
                )
            return thing

        return keep

    def get(self, name: str) -> T:
        """The thing called `name`.

        Raises:
            ConfigError: if there is none, with the nearest name.
        """
        if self.home is not None and not self._things.keys() >= set(self.reserved):
            importlib.import_module(self.home)
        check_choice(self.kind, name, self._things, is_open=True)
        return self._things[name]

    def names_in_order(self) -> list[str]:
        """All known names: those reserved, in their order, then those of users."""
        return list(dict.fromkeys([*self.reserved, *self._things]))

    def things(self) -> list[T]:
        """All that is registered."""
        return list(self._things.values())

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted({*self.reserved, *self._things})
