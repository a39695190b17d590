"""A new sidecar beside earlier ones: it trains, they are frozen at their dials.

    model = expand_beside(model_with_a, "b", earlier="a", num_blocks=2)
    model.set_alpha(0.5)                # of b; a stays at its own dial
    model.set_alpha({"a": 0.3, "b": 1})
    with model.disable_branch():        # the model as it was before b, bit for bit
        ...

Where several stand at one place, `method.several` says what they give together.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from controlllm.common.adapters import has_adapters
from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.registry import check_choice
from controlllm.expansion.files.lineage import as_recorded
from controlllm.expansion.hub.expand import expand
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.hub.named import Named, Sidecar, are_names, check_alone, check_names
from controlllm.expansion.hub.several import load_sidecars
from controlllm.expansion.method.dials import is_number, is_zero
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.surgery.dial import Alpha
from controlllm.expansion.surgery.install import Expansion, set_trainable
from controlllm.expansion.surgery.sidecars import install_together, name_alone

__all__ = ["BranchedForCausalLM", "expand_beside", "load_branches"]


class BranchedForCausalLM(Named, ControlLLMForCausalLM):
    """A base with several named sidecars, of which the last one trains and is saved.

    What is said of an expanded model (its config, blocks, alphas, divergence, trained tensors) is
    said of that one; the others are frozen. `expansions` has the settings of all.

    Args:
        base: the base, taken over.
        named: what was made of it for each sidecar, and taken out again; the last one trains.
    """

    def __init__(self, base: PreTrainedModel, named: dict[str, Sidecar]) -> None:
        vars(self)["_named"] = named  # super() calls `_expand`
        super().__init__(self._newest.config, base)

    @property
    def _newest(self) -> Sidecar:
        return self._named[self.usual]

    @property
    def _installed(self) -> Expansion:
        return self._together

    def _expand(self) -> None:
        self._expansion = self._newest._expansion
        self._together = install_together(self.base, [s._expansion for s in self._named.values()])
        for sidecar in self._named.values():
            for block in sidecar.blocks.values():
                block.frozen = sidecar is not self._newest
            sidecar.turn_on({}, sidecar.config.expansion)
        trainable = set(self._expansion.trainable)
        own = {id(p) for part in self._expansion.parts() for p in part.parameters()}
        names = (name for name, p in self.base.named_parameters() if id(p) in own)
        set_trainable(self.base, [name for name in names if name_alone(name) in trainable])

    def set_alpha(self, alpha: Alpha | Mapping[str, Alpha]) -> None:
        """Turn the dial of the newest sidecar, or those of all.

        Args:
            alpha: what `ControlLLMForCausalLM.set_alpha` takes, for the newest sidecar; the earlier
                ones keep their dials, so that 0 is the model as it was before. Or by name: what is
                not named is off, so that {} is the base.

        Raises:
            ConfigError: an unknown name, or an alpha outside [0, 1]. Nothing is changed then.
        """
        if are_names(alpha):
            self._turn_named(alpha)  # type: ignore[arg-type]  # `are_names` has looked
        else:
            super().set_alpha(alpha)  # type: ignore[arg-type]

    def _turn_named(self, alphas: Mapping[str, Alpha]) -> None:
        super()._turn_named(alphas)
        for record in self.config.parents:  # A model that is saved has the numbers set last.
            if record["name"] in self._named:
                record.pop("weight", None)
                dial = as_recorded(self._named[record["name"]].expansion.dial)
                if dial != record.get("dial"):
                    record["weight"] = dial

    @property
    def usual(self) -> str:
        """The newest: the model as it is saved."""
        return self.sidecars[-1]

    def beneath(self, name: str) -> dict[str, Any]:
        """The dials of the earlier ones, beside which it was trained."""
        before = self.sidecars[: self.sidecars.index(name)]
        return {other: self._named[other].expansion.dial for other in before}

    @contextmanager
    def standing(self, alphas: Mapping[str, Alpha]) -> Iterator[None]:
        """Inside, the dials stand so, by name, and all others are off; no settings are changed."""
        every = [part for one in self._named.values() for part in one._expansion.parts()]
        dials = [part.dial for part in every]
        settings = [one.config.expansion for one in self._named.values()]
        try:
            for name in alphas:
                check_choice("sidecar", name, self.sidecars)
            for name, sidecar in self._named.items():
                if name in alphas:
                    sidecar.stand_at(alphas[name])
                else:
                    sidecar.turn_off()
            yield
        finally:
            for part, dial in zip(every, dials, strict=True):
                part.dial = dial
            for one, before in zip(self._named.values(), settings, strict=True):
                one.config.expansion = before

    @contextmanager
    def disable_branch(self) -> Iterator[None]:
        """Inside, the newest sidecar is off: the model as it was before it, bit for bit."""
        parts = self._expansion.parts()
        dials = [part.dial for part in parts]
        self._newest.turn_off()
        try:
            yield
        finally:
            for part, dial in zip(parts, dials, strict=True):
                part.dial = dial

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *a: Any, **k: Any) -> Any:
        """No tokens are added here (ModelError)."""
        if new_num_tokens is None:
            return self.get_input_embeddings()
        raise self._refusal("get no new tokens")

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """There is no form for several (ModelError); `save_sidecar` writes the newest one."""
        raise self._refusal("have no full form")


def expand_beside(
    model: ControlLLMForCausalLM,
    name: str,
    config: ExpansionConfig | None = None,
    *,
    earlier: str | None = None,
    **settings: Any,
) -> BranchedForCausalLM:
    """Expand a model that carries sidecars once more: a new one beside them, which alone trains.

    Outputs do not change by a bit. Where a block or an end has several, it gives
    p + sum_k (m_k - p), of what each alone would give; every divergence compares with the frozen
    part p.

    Args:
        model: an expanded model, or one with named sidecars; taken over, each at the dial where it
            stands.
        name: of the new sidecar, as in `load_sidecars`.
        config: how to expand; or give its fields as keywords.
        earlier: what the sidecar of an expanded model is called, where it has no name yet.
        **settings: fields of `ExpansionConfig`, instead of `config`.

    Returns:
        The model with all of them, in the same training mode.

    Raises:
        ConfigError: a name is missing, is in use, or cannot be one; or a setting would not be used.
        ModelError: a sidecar cannot stand beside others (adapters, added tokens, trained parts of
            the base), or has one alpha per row; or the base cannot be expanded so. The model is
            then as it was.
    """
    if config is not None and settings:
        raise ConfigError(f"Give either a config or its fields {sorted(settings)}, not both.")
    config = config or ExpansionConfig.from_dict(settings)
    named = _named_of(model, earlier)
    _check_beside(model, named, name, config)
    training = model.training
    base, generation = model.unload(), model.generation_config
    try:
        fresh = expand(base, config)
    except Exception:
        _put_back(model, named)
        raise
    fingerprint = next(iter(named.values())).config.base.get("fingerprint")
    if fingerprint is not None:
        fresh.config.base["fingerprint"] = fingerprint
    fresh.unload()
    named[name] = Sidecar(fresh.config, fresh._expansion)
    return _branched(base, named, generation).train(training)


def load_branches(
    base: PreTrainedModel,
    sidecars: Mapping[str, str | os.PathLike[str]],
    dials: Mapping[str, Alpha] | None = None,
    check_base: bool = True,
    tensors: Mapping[str, dict[str, Tensor]] | None = None,
) -> BranchedForCausalLM:
    """Put sidecars on one base, of which the last one may be trained further.

    Args:
        base: the model that all of them were trained on; taken over, as by `expand`.
        sidecars: their folders by name, the oldest first.
        dials: at which they stand, numbers or by layer; else each where it was saved.
        check_base: refuse a base with another fingerprint; see `load_sidecar`.
        tensors: the tensors of those that are read already.

    Returns:
        The model in evaluation mode.

    Raises:
        ConfigError, CheckpointError, ModelError: as `load_sidecars`, or a dial that cannot be.
    """
    several = load_sidecars(base, sidecars, check_base, tensors)
    named = several._named
    for name, dial in (dials or {}).items():
        named[name].stand_at(dial)
    return _branched(several.unload(), named, several.generation_config).eval()


def _branched(
    base: PreTrainedModel, named: dict[str, Sidecar], generation: Any
) -> BranchedForCausalLM:
    model = BranchedForCausalLM(base, named)
    model.generation_config = generation
    return model


def _named_of(model: ControlLLMForCausalLM, earlier: str | None) -> dict[str, Sidecar]:
    """The sidecars that a model carries, by name (ConfigError: it has none, or two)."""
    if isinstance(model, Named):
        if earlier is not None:
            raise ConfigError(
                f"earlier={earlier!r} would not be used: the sidecars of this model have names "
                f"({', '.join(model.sidecars)}); leave it out."
            )
        return dict(model._named)
    if not isinstance(model, ControlLLMForCausalLM):
        raise ModelError(f"{type(model).__name__} has no sidecar yet: expand(model) makes one.")
    if earlier is None:
        raise ConfigError("earlier: say what the sidecar that this model has is to be called.")
    return {earlier: Sidecar(model.config, model._expansion)}


def _check_beside(
    model: ControlLLMForCausalLM, named: Mapping[str, Sidecar], name: str, config: ExpansionConfig
) -> None:
    """Refuse what cannot be, before anything is changed; note at which dials the others stand."""
    check_names([*named, name])
    if name in named:
        raise ConfigError(f"{name!r} is the name of an earlier sidecar; choose another one.")
    adapters, count = has_adapters(model), len(named) + 1
    for other, sidecar in named.items():
        check_alone(other, sidecar.expansion, sidecar.config.base, adapters, count)
    check_alone(name, config, {}, False, count)
    for other, sidecar in named.items():
        dials = [part.dial for part in sidecar._expansion.parts()]
        if not all(dial is None or is_number(dial) for dial in dials):
            raise ModelError(
                f"The sidecar {other} has one alpha per row, which lasts for the forward passes to "
                "come only: set_alpha(a number) first."
            )
        if all(is_zero(dial) for dial in dials):  # It is off now, whatever it was saved with.
            sidecar.set_alpha(0.0)


def _put_back(model: ControlLLMForCausalLM, named: Mapping[str, Sidecar]) -> None:
    """Make a model whole again that was unloaded."""
    if isinstance(model, Named):
        model._expand()
        return
    (only,) = named.values()
    model._expansion = install_together(model.base, [only._expansion])
    set_trainable(model.base, only._expansion.trainable)
