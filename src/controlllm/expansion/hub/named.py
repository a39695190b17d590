"""Sidecars by name on one base: what is common to using them and to training one of them."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.registry import check_choice
from controlllm.expansion.method.expansion_config import (
    BASE,
    FROZEN_GROUPS,
    SIDECAR_NAME,
    ExpansionConfig,
)
from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.expansion.surgery.dial import Alpha, Dial
from controlllm.expansion.surgery.install import Expansion

__all__ = ["Named", "Sidecar", "are_names", "check_alone", "check_names"]


class Sidecar(Dial):
    """One sidecar among others: its parts, its settings, its dial.

    Args:
        config: how the base was expanded for it, and which base that was.
        expansion: its parts.
    """

    def __init__(self, config: ControlLLMConfig, expansion: Expansion) -> None:
        self.config = config
        self._expansion = expansion

    def turn_on(self, alpha: Alpha, expansion: dict[str, Any]) -> None:
        """Turn the dial to what `_checked` gave, from wherever it was, off or by row."""
        if isinstance(alpha, Mapping):  # Layers that are not named have the numbers set before.
            self._apply_dial(None)
            self._apply_dial(self.expansion.dial)
        self._turn(alpha, expansion)

    def turn_off(self) -> None:
        """Let it take no part; its settings keep the dial that they name."""
        self._apply_dial(0.0)

    @property
    def _module(self) -> nn.Module:
        """Where adapters on top of it are: nowhere, since such sidecars are loaded alone."""
        return nn.Module()

    @classmethod
    def of(cls, model: Any) -> "Sidecar":
        """What a base was expanded by; the base is as it was then, and the model is used up."""
        model.unload()
        return cls(model.config, model._expansion)


class Named:
    """What a model with named sidecars offers; mixed into the model's class."""

    _named: dict[str, Sidecar]

    @property
    def sidecars(self) -> tuple[str, ...]:
        """The names of the sidecars."""
        return tuple(self._named)

    @property
    def expansions(self) -> dict[str, ExpansionConfig]:
        """How the base was expanded for each sidecar.

        Its `dial` is the number that was named for it last, else the one it was saved with: that it
        is off meanwhile changes nothing.
        """
        return {name: sidecar.expansion for name, sidecar in self._named.items()}

    @property
    def usual(self) -> str:
        """The sidecar that is meant where none is named."""
        return self.sidecars[0]

    def beneath(self, name: str) -> dict[str, Any]:
        """The dials of those that stand beneath a sidecar, where it is meant as it was trained."""
        return {}

    def _turn_named(self, alphas: Mapping[str, Alpha]) -> None:
        """Turn the dials of these; all others are off (ConfigError: nothing is changed)."""
        for name in alphas:
            check_choice("sidecar", name, self.sidecars)
        checked = {name: self._named[name]._checked(value) for name, value in alphas.items()}
        for name, sidecar in self._named.items():
            if name in checked:
                sidecar.turn_on(*checked[name])
            else:
                sidecar.turn_off()

    def _refusal(self, what: str) -> ModelError:
        return ModelError(
            f"Named sidecars ({', '.join(self.sidecars)}) on one base {what}: load the one that is "
            "meant by load_sidecar(base, folder)."
        )


def are_names(alpha: object) -> bool:
    """Whether what is given to a dial speaks of sidecars by name."""
    return isinstance(alpha, Mapping) and all(isinstance(key, str) for key in alpha)


def check_names(names: Iterable[object]) -> None:
    """Check that sidecars may be called so (ConfigError)."""
    for name in names:
        if not isinstance(name, str) or not SIDECAR_NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot be a sidecar's name; allowed: letters, digits, '_', '.' and '-', "
                "beginning with a letter or digit, 64 at most."
            )
        if name == BASE:
            raise ConfigError(f"{name!r} cannot be a sidecar's name: so the base itself is called.")


def check_alone(
    name: str, expansion: ExpansionConfig, base: Mapping[str, Any], adapters: bool, count: int
) -> None:
    """Refuse what changes parts of the model that sidecars share (ModelError).

    Args:
        name: of the sidecar.
        expansion: its settings.
        base: what it records of its base.
        adapters: whether it has adapters (PEFT).
        count: how many sidecars are to stand on the base.
    """
    trained = sorted(set(FROZEN_GROUPS) - set(expansion.frozen_groups))
    reasons = {
        "has adapters (PEFT) on frozen blocks": adapters,
        f"has trained parts of the base itself ({', '.join(trained)})": bool(trained),
        "has added tokens": count > 1 and base.get("grown_vocab_size") is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ModelError(
                f"The sidecar {name} {reason}, which all sidecars of a base would share: load it "
                "alone, by load_sidecar(base, folder)."
            )
