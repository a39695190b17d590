"""Several named sidecars on one base, whose weights are held once."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from controlllm.common.errors import ConfigError
from controlllm.expansion.files.base_record import require_base
from controlllm.expansion.files.fingerprint import fingerprint
from controlllm.expansion.files.records import read_sidecar_config
from controlllm.expansion.hub.expand import describe_base
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.hub.named import Named, Sidecar, are_names, check_alone, check_names
from controlllm.expansion.hub.sidecar_loading import load_sidecar
from controlllm.expansion.method.dials import is_zero
from controlllm.expansion.method.ends import set_vocab_size
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.expansion.surgery.anatomy import examine
from controlllm.expansion.surgery.checks import refuse_expanded
from controlllm.expansion.surgery.dial import Alpha
from controlllm.expansion.surgery.install import Expansion
from controlllm.expansion.surgery.sidecars import install_together

__all__ = ["Sidecar", "SidecarsForCausalLM", "load_sidecars"]


class SidecarsForCausalLM(Named, ControlLLMForCausalLM):
    """A base with several named sidecars, made by `load_sidecars`; for use, not for training.

    Args:
        config: of the base.
        base: the base, taken over.
        named: what was made of it for each sidecar, and taken out again.
    """

    def __init__(
        self, config: ControlLLMConfig, base: PreTrainedModel, named: dict[str, Sidecar]
    ) -> None:
        vars(self)["_named"] = named  # super() calls `_expand`
        super().__init__(config, base)

    def _expand(self) -> None:
        self._expansion = install_together(self.base, [s._expansion for s in self._named.values()])
        if (rows := self.config.base.get("grown_vocab_size")) is not None:
            set_vocab_size(self.base, rows)

    def set_alpha(self, alpha: Alpha | Mapping[str, Alpha]) -> None:
        """Turn the dials of the sidecars; one that is not named is off.

        Args:
            alpha: for each sidecar what `ControlLLMForCausalLM.set_alpha` takes: a number, None (as
                trained), a tensor with one alpha per row or token, or one of these by layer. Where
                several are on, their changes of a block's output are added. Instead of all names
                0, the base; and with one sidecar only its own alpha.

        Raises:
            ConfigError: an unknown name, an alpha outside [0, 1], or an alpha without a name where
                it is not clear whose. Nothing is changed then.
        """
        self._turn_named(self._by_name(alpha))

    def _by_name(self, alpha: Any) -> Mapping[str, Alpha]:
        if are_names(alpha):
            return alpha  # type: ignore[no-any-return]
        if len(self._named) == 1:
            return dict.fromkeys(self._named, alpha)
        if is_zero(alpha):
            return {}
        raise ConfigError(
            f"set_alpha({alpha!r}) does not say which sidecar is meant ({', '.join(self.sidecars)}"
            f'): name it, as in set_alpha({{"{self.sidecars[0]}": 0.3}}); what is not named is off.'
        )

    def alphas(self) -> dict[str, float]:  # type: ignore[override]
        """Mean alpha by sidecar and layer, such as `maths 3`."""
        return {
            f"{name} {layer}": alpha
            for name, sidecar in self._named.items()
            for layer, alpha in sidecar.alphas().items()
        }

    @property
    def has_gates(self) -> bool:
        """Whether some block of some sidecar decides alpha for each token."""
        return any(sidecar.has_gates for sidecar in self._named.values())

    @contextmanager
    def record_alpha(self, gather: Any = None) -> Iterator[None]:
        """Measure the mean gates of the only sidecar (ModelError: there are several)."""
        if len(self._named) > 1:
            raise self._refusal("have no one gate to measure")
        only = next(iter(self._named.values()))
        with only.record_alpha(gather):
            yield

    @property
    def expansion(self) -> ExpansionConfig:
        """How the base was expanded (ModelError: for several sidecars, see `expansions`)."""
        if len(self._named) > 1:
            raise self._refusal("have no one expansion (model.expansions has each)")
        return next(iter(self._named.values())).expansion

    def _looked_into(self) -> Expansion:
        """The parts of the sidecar that alone is on (ModelError: not one of several is)."""
        named = [sidecar._expansion for sidecar in self._named.values()]
        on = [one for one in named if any(not is_zero(part.dial) for part in one.parts())]
        if len(named) > 1 and len(on) != 1:
            raise self._refusal(
                f"are looked into one at a time, and {len(on) or 'none'} are on: set_alpha names "
                "the one that is to be seen; or"
            )
        return on[0] if len(named) > 1 else named[0]

    def train(self, mode: bool = True) -> "SidecarsForCausalLM":
        """Nothing of it trains (ModelError)."""
        if mode:
            raise self._refusal("do not train together")
        super().train(False)
        return self

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *a: Any, **k: Any) -> Any:
        """No tokens are added here (ModelError)."""
        if new_num_tokens is None:
            return self.get_input_embeddings()
        raise self._refusal("get no new tokens")

    def save_sidecar(
        self, folder: str | os.PathLike[str], overwrite: bool = False, bits: int | None = None
    ) -> None:
        """They are saved already (ModelError)."""
        raise self._refusal("are saved already, each in its own folder")

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """There is no form for several (ModelError)."""
        raise self._refusal("have no full form")


def load_sidecars(
    base: PreTrainedModel,
    sidecars: Mapping[str, str | os.PathLike[str]],
    check_base: bool = True,
    tensors: Mapping[str, dict[str, Tensor]] | None = None,
) -> SidecarsForCausalLM:
    """Put several sidecars on one base: `model.set_alpha({"maths": 0.3})` says which is on.

    Each keeps its own layers, structure, interpolator and ends; the base's weights are held once.

    Args:
        base: the model that all of them were trained on; taken over, as by `expand`.
        sidecars: their folders by name: letters, digits, `_`, `.` and `-`, 64 at most.
        check_base: refuse a base with another fingerprint; see `load_sidecar`.
        tensors: the tensors of those that are read already.

    Returns:
        The model in evaluation mode. One sidecar stands at the dial it was saved with; of several
        all are off: the model is the base until `set_alpha` names one.

    Raises:
        ConfigError: no sidecar, or a name that cannot be one.
        CheckpointError, ModelError: one of them does not fit the base, is damaged, or cannot stand
            beside others (adapters, added tokens, trained parts of the base). The base is then
            unchanged.
    """
    if not sidecars or not isinstance(sidecars, Mapping):
        raise ConfigError("load_sidecars needs at least one sidecar by name: {name: folder}.")
    check_names(sidecars)
    refuse_expanded(base)
    read = {name: read_sidecar_config(folder) for name, folder in sidecars.items()}
    for name, values in read.items():
        expansion = ExpansionConfig.from_dict(values["expansion"])
        check_alone(name, expansion, values["base"], "peft" in values, len(read))
    if check_base:
        own = getattr(base.config, "_name_or_path", "") or type(base).__name__
        given = {"fingerprint": fingerprint(base), "name_or_path": own}
        for name, values in read.items():
            what = f"The sidecar {name} ({sidecars[name]})"
            advice = "pass check_base=False (--load.check_base false)"
            require_base(given, values["base"], what, advice)
    named = {
        name: _prepared(base, folder, (tensors or {}).get(name))
        for name, folder in sidecars.items()
    }
    about = describe_base(base, examine(base))
    about |= {k: v for k, v in next(iter(read.values()))["base"].items() if k in _SAME}
    config = ControlLLMConfig(text_config=base.config, expansion={}, base=about)
    config._attn_implementation = base.config._attn_implementation
    config.name_or_path = about["name_or_path"]
    model = SidecarsForCausalLM(config, base, named)
    model.generation_config = base.generation_config
    model.set_alpha({} if len(named) > 1 else {n: s.expansion.dial for n, s in named.items()})
    return model.eval()


_SAME = ("fingerprint", "grown_vocab_size")
"""What a sidecar's record of its base says of the model that several are put on."""


def _prepared(
    base: PreTrainedModel, folder: str | os.PathLike[str], tensors: dict[str, Tensor] | None
) -> Sidecar:
    """A sidecar's parts, made and checked on the base, which is then as it was."""
    model = load_sidecar(base, Path(folder), check_base=False, tensors=tensors)
    model.unload()
    return Sidecar(model.config, model._expansion)
