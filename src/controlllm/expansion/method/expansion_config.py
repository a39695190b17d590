"""What to expand and how: one dataclass, checked when it is made."""

import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeGuard

from controlllm.common.errors import ConfigError
from controlllm.common.registry import check_choice
from controlllm.expansion.method.registries import DIVERGENCES, INTERPOLATORS

__all__ = ["BASE", "MODEL_TYPE", "SIDECARS_TYPE", "SIDECAR_NAME", "ExpansionConfig"]

MODEL_TYPE, SIDECARS_TYPE = "controlllm", "controlllm_sidecars"
"""What the configs of whole saved models call themselves: with one expansion, with named ones."""
BASE = "base"
"""What the base is called beside sidecars, and as the first stage."""
SIDECAR_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
"""What a sidecar may be called among others: it is the name of a model where it is served."""
STRUCTURES = ("concat", "stack", "hybrid")
FROZEN_GROUPS = ("blocks", "embeddings", "norm", "head")
DIVERGENCE_TOKENS = ("all", "target")


@dataclass
class ExpansionConfig:
    """How a base model is expanded by Control LLM (arXiv 2501.10979; docs/method.md §2 to §6).

    Raises:
        ConfigError: for every value that cannot work, with the value, what is allowed and, for
            names, the nearest.
    """

    structure: str = "concat"
    """`concat`: copies run beside blocks; `stack`: after them (LLaMA-Pro); `hybrid`: in turn."""

    num_blocks: int | None = None
    """How many blocks to expand, evenly spaced; None = a quarter of the layers (8 of 32)."""

    layers: list[int] | None = None
    """Explicit layers to expand, instead of `num_blocks`."""

    interpolator: str = "lerp"
    """How the branches join: lerp, dlerp, dlerpin, slerp, moe, prog, proj, or a registered name."""

    alpha: float = 0.5
    """Weight of the expanded branch at the start, 0 to 1."""

    train_alpha: bool = False
    """Train a constant alpha (token gates, `dlerp` and its like, always train)."""

    divergence: str = "mse"
    """What aligns the branches: mse, nmse, cosine, dot, attention, none, or a registered name."""

    divergence_weight: float | str = 1.0
    """Weight of the divergence loss; `dynamic` multiplies each token's divergence by its alpha."""

    divergence_tokens: str = "all"
    """Tokens that the divergence counts: `all` real ones or `target` ones; padding never counts."""

    detach_pretrained: bool = False
    """Stop the divergence's gradient at the pretrained branch (else earlier blocks get it too)."""

    relaxed_norm: float | str | None = None
    """Blend w·x + (1-w)·norm(x) in expanded blocks; `dynamic`: w = clamp(2·alpha - 1, 0, 1).
    A fixed w > 0 changes outputs from the first step."""

    freeze: list[str] | None = None
    """Groups of the base that stay frozen, of blocks, embeddings, norm, head; None = all. A group
    left out trains in place, and alpha 0 is no longer the base: `expand_ends` keeps it."""

    expand_ends: bool = False
    """Give embedding, final norm and LM head trainable copies, too; added tokens live there."""

    residual_projections: list[str] | None = None
    """For `stack`: the modules or parameters that write to the residual stream and start at zero;
    None = found by their usual names (o_proj, down_proj, ...)."""

    dial: float | dict[int, float] | None = None
    """Used instead of a constant alpha, and multiplied with a token gate (1 = as trained), for all
    or per layer; 0 = the base. `set_alpha` writes it."""

    mean_alpha: dict[int, float] | None = None
    """Mean alpha per layer as measured in evaluation, before a dial multiplies it; collapsing a
    token gate needs it."""

    def __post_init__(self) -> None:
        check_choice("structure", self.structure, STRUCTURES)
        check_choice("interpolator", self.interpolator, INTERPOLATORS.names(), is_open=True)
        divergences = [*DIVERGENCES.names(), "none"]
        check_choice("divergence", self.divergence, divergences, is_open=True)
        check_choice("divergence_tokens", self.divergence_tokens, DIVERGENCE_TOKENS)
        for group in self.freeze or ():
            check_choice("freeze", group, FROZEN_GROUPS)
        self.dial = _by_layer(self.dial)
        self.mean_alpha = _by_layer(self.mean_alpha)
        self._check_positions()
        self._check_alphas()
        self._check_weights()

    def _check_positions(self) -> None:
        if self.num_blocks is not None and (not _is_int(self.num_blocks) or self.num_blocks < 1):
            raise ConfigError(
                f"num_blocks={self.num_blocks!r}; allowed: a whole number from 1 to the depth, "
                "or null."
            )
        if self.layers is None:
            return
        if not self.layers or not all(_is_int(layer) for layer in self.layers):
            raise ConfigError(
                f"layers={self.layers!r}; allowed: a list of at least one layer index, or null."
            )
        if len(set(self.layers)) != len(self.layers):
            raise ConfigError(f"layers={self.layers!r} names a layer twice; give each once.")
        if self.num_blocks not in (None, len(self.layers)):
            raise ConfigError(
                f"num_blocks={self.num_blocks}, but layers names {len(self.layers)}: "
                f"{self.layers}; give one of the two."
            )

    def _check_alphas(self) -> None:
        _check_alpha("alpha", self.alpha)
        if self.alpha in (0, 1) and (
            self.train_alpha or not INTERPOLATORS.get(self.interpolator).constant
        ):
            raise ConfigError(
                f"alpha={self.alpha} cannot be trained: its logit is infinite; allowed: strictly "
                "between 0 and 1."
            )
        for value in self.dial.values() if isinstance(self.dial, dict) else [self.dial]:
            if value is not None:
                _check_alpha("alpha dial", value)
        for value in (self.mean_alpha or {}).values():
            _check_alpha("mean_alpha", value)

    def _check_weights(self) -> None:
        weight, relaxed = self.divergence_weight, self.relaxed_norm
        if weight != "dynamic" and not (_is_number(weight) and 0 <= weight < math.inf):
            raise ConfigError(
                f"divergence_weight={weight!r}; allowed: a number from 0, or 'dynamic'."
            )
        given = relaxed not in (None, "dynamic")
        if given and not (_is_number(relaxed) and 0 <= relaxed <= 1):
            raise ConfigError(
                f"relaxed_norm={relaxed!r}; allowed: a number from 0 to 1, 'dynamic', or null."
            )
        if relaxed == "dynamic" and not INTERPOLATORS.get(self.interpolator).constant:
            raise ConfigError(
                f"relaxed_norm='dynamic' follows a constant alpha, which "
                f"interpolator={self.interpolator!r} does not have; give a fixed weight, or one of "
                "the interpolators lerp, slerp, prog, proj."
            )

    @property
    def frozen_groups(self) -> tuple[str, ...]:
        """The groups of the base that stay frozen."""
        return FROZEN_GROUPS if self.freeze is None else tuple(self.freeze)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ExpansionConfig":
        """Make a config from `to_dict`'s values.

        Raises:
            ConfigError: for a key that is not a field, with the nearest one.
        """
        for key in values:
            check_choice("a setting of the expansion", key, [field.name for field in fields(cls)])
        return cls(**values)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_alpha(field: str, value: object) -> None:
    if not _is_number(value) or not 0 <= value <= 1:
        raise ConfigError(
            f"{field}={value!r}; allowed: a number from 0 (the base) to 1 (the expanded branch)."
        )


def _by_layer(value: Any) -> Any:
    """JSON has no integer keys: {"3": 0.4} becomes {3: 0.4}; what names no layer, None."""
    if not isinstance(value, dict):
        return value
    return {int(layer): v for layer, v in value.items()} or None
