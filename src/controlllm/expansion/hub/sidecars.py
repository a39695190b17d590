"""The model with several named sidecars on one base, whose weights are held once."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from transformers import PreTrainedModel

from controlllm.common.errors import ConfigError
from controlllm.expansion.hub.backbone import ControlLLMModel
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.hub.named import Named, Sidecar, are_names
from controlllm.expansion.method.dials import is_zero
from controlllm.expansion.method.ends import set_vocab_size
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.hf_config import ControlLLMConfig, SidecarsConfig
from controlllm.expansion.surgery.dial import Alpha
from controlllm.expansion.surgery.install import Expansion
from controlllm.expansion.surgery.sidecars import install_together

__all__ = ["SidecarsForCausalLM", "SidecarsModel"]


class SidecarsForCausalLM(Named, ControlLLMForCausalLM):
    """A base with several named sidecars, for use, not for training.

    Made by `load_sidecars` or `from_pretrained`. One sidecar stands at the dial it was saved with;
    of several all are off: the model is the base until `set_alpha` names one.

    Args:
        config: of the base and of each sidecar.
        base: the base, taken over; None = built from the config, without weights.
        named: what was made of it for each sidecar, and taken out again; None = made here.
    """

    config_class = SidecarsConfig  # type: ignore[assignment]  # a config of its own
    auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "modeling_controlllm.SidecarsConfig",
        "AutoModel": "modeling_controlllm.SidecarsModel",
        "AutoModelForCausalLM": "modeling_controlllm.SidecarsForCausalLM",
    }

    def __init__(
        self,
        config: SidecarsConfig,
        base: PreTrainedModel | None = None,
        named: dict[str, Sidecar] | None = None,
    ) -> None:
        vars(self)["_named"] = dict(named or {})  # super() calls `_expand`
        super().__init__(config, base)

    def _expand(self) -> None:
        if not self._named:
            self._named |= {name: self._made(e) for name, e in self.config.by_name().items()}
        self._expansion = install_together(self.base, [s._expansion for s in self._named.values()])
        if (rows := self.config.base.get("grown_vocab_size")) is not None:
            set_vocab_size(self.base, rows)
        alone = len(self._named) == 1
        self.set_alpha({n: s.expansion.dial for n, s in self._named.items()} if alone else {})

    def _made(self, expansion: dict[str, Any]) -> Sidecar:
        """A sidecar's parts, without what it has learned."""
        config = ControlLLMConfig(
            text_config=self.base.config, expansion=expansion, base=self.config.base
        )
        return Sidecar.of(ControlLLMForCausalLM(config, self.base))

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
            return alpha
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
        """There is no one sidecar to save (ModelError); `save_pretrained` writes all."""
        raise self._refusal("are written together, by save_pretrained")

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Write the base and all sidecars into one folder, each with its dial.

        Raises:
            ModelError: the base is quantised.
        """
        self.config.sidecars = [
            {"name": name, "expansion": sidecar.config.expansion}
            for name, sidecar in self._named.items()
        ]
        super().save_pretrained(save_directory, *args, **kwargs)


class SidecarsModel(ControlLLMModel):
    """The stack of blocks of a base with several named sidecars, without its head."""

    config_class = SidecarsConfig  # type: ignore[assignment]  # a config of its own
    whole = SidecarsForCausalLM

    def _expansions(self, model: ControlLLMForCausalLM) -> list[Expansion]:
        assert isinstance(model, SidecarsForCausalLM)
        return [sidecar._expansion for sidecar in model._named.values()]
