"""The settings that are a method's own."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.settings import LARGEST
from controlllm.expansion import ExpansionConfig
from controlllm.expansion.method.unread import check_settings, stands_at_zero, without_unread
from controlllm.train.config.training_config import TrainingConfig

__all__ = ["FreezeConfig", "KLConfig", "as_stack", "check_alphas", "settled"]

_STACK = {"structure": "stack", "divergence": "none"}
_FREE = ("num_blocks", "layers", "residual_projections")


@dataclass
class FreezeConfig:
    """What of the base trains (method `freeze`)."""

    num_layers: int | None = setting(None, at_least=-LARGEST)
    """The last so many blocks train, or (below 0) the first ones; null = a quarter of all."""
    layers: list[int] | None = None
    """Explicit blocks that train, instead of num_layers."""
    also_train: list[str] = setting(factory=list, choices=("embeddings", "norm", "head"))
    """What trains beside them: any of embeddings, norm (the final one) and head."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "freeze")
        if self.num_layers == 0 or self.layers == []:
            raise ConfigError(
                "freeze: no block trains; give num_layers other than 0, or layers, or neither."
            )
        if self.num_layers is not None and self.layers is not None:
            raise ConfigError(
                f"freeze.num_layers={self.num_layers} and freeze.layers={self.layers} cannot "
                "both be given; leave one of them out."
            )

    def trained_layers(self, depth: int) -> list[int]:
        """The blocks that train, of so many.

        Raises:
            ConfigError: they are not there.

        >>> FreezeConfig(num_layers=-2).trained_layers(8), FreezeConfig().trained_layers(8)
        ([0, 1], [6, 7])
        """
        number = max(depth // 4, 1) if self.num_layers is None else self.num_layers
        last = range(depth - number, depth) if number > 0 else range(-number)
        layers = list(last) if self.layers is None else sorted(set(self.layers))
        wrong = [layer for layer in layers if not 0 <= layer < depth]
        if wrong:
            given = f"layers={self.layers}" if self.layers else f"num_layers={self.num_layers}"
            raise ConfigError(f"freeze.{given}, but the model has {depth} blocks.")
        return layers


@dataclass
class KLConfig:
    """The pull to the base on the training tokens (method `kl`)."""

    weight: float = 0.1
    """Weight of KL(base || model), a mean over the tokens that have a cross-entropy; beside
    training.loss_type=dft the loss is that of ASFT."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "kl")


def as_stack(expansion: ExpansionConfig) -> ExpansionConfig:
    """The expansion of method `stack`, LLaMA-Pro: copies after their blocks, and no divergence.

    Raises:
        ConfigError: another expansion is asked for beside it.

    >>> as_stack(ExpansionConfig(num_blocks=2)).structure
    'stack'
    """
    default = ExpansionConfig()
    for field in fields(ExpansionConfig):
        name, value = field.name, getattr(expansion, field.name)
        if name not in _FREE and value not in (getattr(default, name), _STACK.get(name)):
            raise ConfigError(
                f"expansion.{name}={value!r} does not go together with method='stack', which is "
                "LLaMA-Pro as published; leave it out, or use method='control' with "
                "expansion.structure='stack'."
            )
    return replace(expansion, structure="stack", divergence="none")


def settled(
    expansion: ExpansionConfig, training: TrainingConfig, below: Mapping[str, Any]
) -> ExpansionConfig:
    """The expansion of a run, with a preset's values (`below`) for unread settings taken back.

    Raises:
        ConfigError: something is said that would not be used, or the copies would not train.
    """
    check_settings(expansion, below, "expansion")
    expansion = without_unread(expansion)
    check_alphas(expansion, training)
    fixed = "training.alpha_sampling" if training.alpha_sampling is not None else "expansion.dial"
    dialled = training.alpha_sampling is not None or isinstance(expansion.dial, int | float)
    if expansion.train_alpha and dialled:
        raise ConfigError(
            f"expansion.train_alpha=True would not be used: {fixed} replaces a constant alpha in "
            "every step; leave out one of the two."
        )
    return expansion


def check_alphas(expansion: ExpansionConfig, training: TrainingConfig) -> None:
    """Check that the copies contribute to the output, so that they can learn.

    Raises:
        ConfigError: they have not: the output is the base's, and nothing would learn.
    """
    if training.alpha_sampling is None and stands_at_zero(expansion):
        name = "dial" if expansion.dial == 0 else "alpha"
        raise ConfigError(
            f"expansion.{name}=0 is the base itself, so that nothing would learn; set one above 0, "
            "or training.alpha_sampling."
        )
