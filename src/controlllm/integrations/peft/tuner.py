"""The tuner: what PEFT calls to put adapters into a base, to save, load, blend and fold them."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.registry import check_choice
from controlllm.common.tensors import require_same
from controlllm.expansion.merge.collapsing import check_same_kind, fold, interpolate, weight_alphas
from controlllm.expansion.method.terms import DivergenceTerms
from controlllm.expansion.surgery.dial import Alpha
from controlllm.integrations.callback import ADAPTERS
from controlllm.integrations.peft.adapter import Adapter
from controlllm.integrations.peft.adapters import Adapters, adapters_of
from controlllm.integrations.peft.config import ControlLLMPeftConfig
from controlllm.integrations.peft.layer import AdaptedLayer
from controlllm.integrations.peft.names import PARTS, without_adapter

__all__ = ["ControlLLMTuner"]


class ControlLLMTuner(BaseTuner):
    """Control LLM's expansion as PEFT knows it; made by `get_peft_model` and its like.

    A `PeftModel` hands on to it what it does not have itself: `set_alpha`, `record_alpha`,
    `explicit_divergence`, `merge_and_unload`, `add_weighted_adapter`.
    """

    prefix = "controlllm_"
    tuner_layer_cls = AdaptedLayer

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Expand the base for a new adapter. Arguments are PEFT's.

        Raises:
            ModelError, ConfigError, CheckpointError: if it cannot be done, or the adapter was
                trained on another base; the base is then untouched.
        """
        settings = self._settings(adapter_name)
        first = ADAPTERS not in vars(model)
        adapters = Adapters(self.model) if first else adapters_of(model)
        try:
            adapters.add(adapter_name, settings)
            super().inject_adapter(
                model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
            )
        except Exception:
            if first:
                adapters.remove()
            for layer in adapters.layers.values():
                layer.delete_adapter(adapter_name)
            adapters.without(adapter_name)
            raise
        finally:
            settings.target_modules = None  # PEFT would save the base's tables where it names them
        adapters.rename_tied()

    def _settings(self, adapter_name: str) -> ControlLLMPeftConfig:
        settings = self.peft_config[adapter_name]
        if not isinstance(settings, ControlLLMPeftConfig):
            raise ConfigError(
                f"Adapter {adapter_name!r} has a {type(settings).__name__}; a model with Control "
                "LLM adapters takes a ControlLLMPeftConfig only."
            )
        return settings

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        """Say which modules are meant; PEFT takes a list of eight or more for one to shorten."""
        named = adapters_of(self.model).named.values()
        adapter = next(adapter for adapter in named if adapter.settings is peft_config)
        adapter.settings.target_modules = tuple(adapter.places)
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> bool:
        """Exact names: PEFT would take `layers.3` for a part of `vision.layers.3`, too."""
        return key in getattr(peft_config, "target_modules", ())

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = adapters_of(self.model).adapt(adapter_name, current_key, target)
        if layer is not target:
            setattr(parent, target_name, layer)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Nothing is cast: a copy of a block computes in the block's own type."""

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT asks here for adapters by row.

        Raises:
            ModelError: if rows of one batch are to have different adapters.
        """
        if kwargs.get("adapter_names") is not None:
            raise ModelError(
                "adapter_names would give each row of a batch an adapter of its own, which Control "
                "LLM adapters cannot do; sort the rows by adapter and call set_adapter()."
            )
        yield

    @property
    def adapter(self) -> Adapter:
        """The active adapter.

        Raises:
            ModelError: if there is none.
        """
        return adapters_of(self.model).require_active()

    def set_alpha(self, alpha: Alpha) -> None:
        """Turn the active adapter's dial; see `ControlLLMForCausalLM.set_alpha`."""
        self.adapter.set_alpha(alpha)

    def alphas(self) -> dict[int, float]:
        """Mean alpha per layer of the active adapter."""
        return self.adapter.alphas()

    def record_alpha(self) -> AbstractContextManager[None]:
        """Measure the active adapter's mean alphas inside; folding a token gate needs them."""
        return self.adapter.record_alpha()

    def explicit_divergence(self) -> AbstractContextManager[DivergenceTerms]:
        """Collect the divergence instead of injecting its gradient: the caller adds it."""
        return self.adapter.parts.state.collecting()

    @property
    def divergence(self) -> dict[int, float]:
        """Mean divergence per layer in the active adapter's last training forward pass."""
        return self.adapter.parts.state.means()

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "linear",
    ) -> None:
        """Make a new adapter whose trained tensors are a weighted mean of others'.

        It is not active. Like every interpolation of weights it is an approximation.

        Args:
            adapters: names of adapters of the same structure at the same layers.
            weights: what each counts, from 0 to 1, with the sum 1.
            adapter_name: of the new one.
            combination_type: "linear"; no other has a meaning for whole blocks.

        Raises:
            ConfigError: for weights or names that cannot be.
            ModelError: if the adapters do not fit together, with what differs.
        """
        check_choice("combination_type", combination_type, ("linear",))
        for name in adapters:
            check_choice("adapter", name, self.peft_config)
        if adapter_name in self.peft_config:
            raise ConfigError(f"adapter_name={adapter_name!r} exists already; choose another.")
        if not adapters or len(adapters) != len(weights):
            raise ConfigError(
                f"weights={list(weights)} for adapters {list(adapters)}; give one for each."
            )
        if any(not 0 <= weight <= 1 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
            raise ConfigError(
                f"weights={list(weights)}; allowed: numbers from 0 to 1 with the sum 1, since "
                "whole blocks are blended and not differences from the base."
            )
        named = adapters_of(self.model).named
        sources = [named[name] for name in adapters]
        for other in sources[1:]:
            check_same_kind(
                sources[0].expansion, other.expansion, sources[0].tensors(), other.tensors()
            )
        settings = copy.deepcopy(self._settings(adapters[0]))
        settings.mean_alpha = None  # measured on the sources, not on their blend
        if any(source.expansion.dial != sources[0].expansion.dial for source in sources):
            settings.dial = None
        self.peft_config[adapter_name] = settings
        try:
            self.inject_adapter(self.model, adapter_name)
        except Exception:
            del self.peft_config[adapter_name]
            raise
        parts = [(s.tensors(), w) for s, w in zip(sources, weights, strict=True) if w > 0]
        with torch.no_grad():
            for name, tensor in named[adapter_name].tensors().items():
                mean, total = parts[0][0][name], parts[0][1]
                for tensors, weight in parts[1:]:
                    total += weight
                    mean = interpolate(mean, tensors[name], weight / total)
                tensor.copy_(mean)

    def _unload_and_optionally_merge(  # type: ignore[override]  # PEFT returns it, too
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """Give the base back, with an adapter folded into it or not. Arguments are PEFT's.

        There is nothing to show progress of: folding a block takes no longer than copying it.

        Raises:
            ModelError: if the adapter cannot be folded (its interpolator has no meaning for
                weights, a token gate's mean alpha was never measured, not exactly one adapter), or
                `safe_merge` finds a value that is not finite; nothing is changed then.
        """
        adapters = adapters_of(self.model)
        if merge:
            names = self.active_adapters if adapter_names is None else adapter_names
            if len(names) != 1:
                raise ModelError(
                    f"Exactly one adapter can be folded into the base, got {list(names)}; blend "
                    "several by add_weighted_adapter() first."
                )
            check_choice("adapter", names[0], adapters.named)
            adapter = adapters.named[names[0]]
            if safe_merge:
                _check_finite(adapter)
            alphas = weight_alphas(adapter.blocks, adapter.expansion)
            with torch.no_grad():
                fold(adapter.parts, adapter.expansion, alphas)
        adapters.remove()
        return self.model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Parameters only: a copy's buffers are the frozen block's."""
        found = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        buffers = {name for name, _ in model.named_buffers()}
        return {key: tensor for key, tensor in found.items() if key not in buffers}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """PEFT looks for the name at the end only, and would leave it in."""
        return without_adapter(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Give a file's tensors their names in the model.

        Raises:
            CheckpointError: if tensors are missing, left over, or of another shape; PEFT would go
                on with a warning at most.
        """
        mapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        inside = f".{PARTS}.{adapter_name}."
        own = {
            without_adapter(name, adapter_name): parameter.shape
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if inside in name
        }
        saved = {without_adapter(name, adapter_name): t.shape for name, t in mapped.items()}
        require_same(own, saved, f"The file of adapter {adapter_name!r}")
        return mapped


def _check_finite(adapter: Adapter) -> None:
    """Check that an adapter can be folded into a base without spoiling it (ModelError)."""
    # A constant alpha of 0 or 1 is an infinite logit, and meant so.
    for name, tensor in adapter.tensors().items():
        if not name.endswith(".logit") and not bool(tensor.isfinite().all()):
            raise ModelError(f"{name} has values that are not finite; the base stays as it was.")
