"""The names that a client may use, fixed when the server starts: never paths, never anything else.

| name | who answers |
|---|---|
| `base` | the base model |
| `maths` | the sidecar of that name, as it was saved |
| `maths@0.3` | the same at this alpha, for clients that can choose a name only |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from controlllm.common.errors import ConfigError
from controlllm.common.registry import nearest
from controlllm.common.settings import check_range, plain_number
from controlllm.inference.engine.protocol import Voice

__all__ = ["BASE", "Choice", "ModelTable", "UnknownModelError"]

BASE = "base"
"""The name of the base model."""

V = TypeVar("V")
Alpha = float | Mapping[str, float] | None


class UnknownModelError(ConfigError):
    """A client asks for a name that is not in the table."""


@dataclass(frozen=True)
class Choice:
    """What a client asked for, as it is told back: the names, and the voice that they mean."""

    model: str
    sidecar: str | None
    alpha: float | dict[str, float] | None
    voice: Voice


class ModelTable:
    """All names, and whom they mean.

    Args:
        sidecars: names of what was trained; none for a plain model.
        alphas: those for which each sidecar gets a name of its own.
        has_dial: whether alpha can be chosen.

    Raises:
        ConfigError: a name that cannot be used, or an alpha outside [0, 1].
    """

    def __init__(
        self, sidecars: Sequence[str] = (), alphas: Sequence[float] = (), has_dial: bool = True
    ) -> None:
        self.sidecars = tuple(sidecars)
        self.has_dial = has_dial and bool(self.sidecars)
        for name in self.sidecars:
            if not name or name == BASE or any(c in "@/\\" or not c.isprintable() for c in name):
                raise ConfigError(
                    f"{name!r} cannot name a sidecar: {BASE!r} is the base, and names hold no "
                    "@, / or \\."
                )
        for alpha in alphas:
            check_range("alphas", alpha, 0, 1)
        if alphas and not self.has_dial:
            raise ConfigError("alphas: this model has no dial; leave them out.")
        self._entries: dict[str, tuple[str | None, float | None]] = {BASE: (None, None)}
        for name in self.sidecars:
            self._entries[name] = (name, None)
            self._entries |= {f"{name}@{plain_number(a)}": (name, float(a)) for a in alphas}

    @property
    def names(self) -> list[str]:
        """All names, the base first."""
        return list(self._entries)

    def choose(self, model: str, sidecar: str | None = None, alpha: Alpha = None) -> Choice:
        """Whom a client means.

        Args:
            model: a name of the table.
            sidecar: a sidecar's name, where `model` is the base's or the same.
            alpha: from 0 to 1; or one per sidecar, to blend them; None = as the name says.

        Raises:
            UnknownModelError: there is no such name.
            ConfigError: the three contradict one another, or there is no dial.
        """
        if model not in self._entries:
            raise UnknownModelError(
                f"The model {model[:64]!r} does not exist; there are {', '.join(self._entries)}."
                f"{nearest(model[:64], self._entries)}"
            )
        named, fixed = self._entries[model]
        name = self._agreed("sidecar", model, named, sidecar)
        if name is not None and name not in self.sidecars:
            raise ConfigError(
                f"sidecar: there is none called {name[:64]!r}; there are "
                f"{', '.join(self.sidecars) or 'none'}.{nearest(name[:64], self.sidecars)}"
            )
        if alpha is not None and not self.has_dial:
            raise ConfigError("alpha: this model has no dial; leave it out.")
        if isinstance(alpha, Mapping):
            return self._blend(model, name, alpha)
        value = self._agreed("alpha", model, fixed, alpha)
        if name is None and value:
            raise ConfigError(
                f"alpha={plain_number(value)}: the base has none; choose a sidecar "
                f"({', '.join(self.sidecars)})."
            )
        return Choice(model, name, value, _voice({} if name is None else {name: value}))

    def _blend(self, model: str, name: str | None, alphas: Mapping[str, float]) -> Choice:
        if name is not None:
            raise ConfigError(f"alpha: one per sidecar needs model={BASE!r} and no sidecar.")
        for sidecar in alphas:
            if sidecar not in self.sidecars:
                raise ConfigError(
                    f"alpha: there is no sidecar {sidecar[:64]!r}; there are "
                    f"{', '.join(self.sidecars)}.{nearest(sidecar[:64], self.sidecars)}"
                )
        return Choice(model, None, dict(alphas), _voice(alphas))

    def _agreed(self, what: str, model: str, named: V | None, asked: V | None) -> V | None:
        """What the name and the field say together."""
        if named is not None and asked is not None and named != asked:
            raise ConfigError(
                f"{what}: the model {model!r} means {named!r}, and {what} says something else; "
                "leave one of them out."
            )
        return asked if named is None else named


def _voice(alphas: Mapping[str, float | None]) -> Voice:
    """Sorted, without those that are off, so that equal voices share their caches."""
    return Voice(tuple(sorted((name, alpha) for name, alpha in alphas.items() if alpha != 0)))
