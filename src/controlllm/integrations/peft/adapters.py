"""The named adapters of one base, of which one is active: put in, switched, taken out."""

import copy
import warnings
from dataclasses import replace
from typing import Any

from peft import PeftModel
from peft.utils.integrations import skip_init_on_device
from torch import nn
from transformers import PreTrainedModel

from controlllm.common.errors import ConfigError, ModelError
from controlllm.expansion.files.base_record import require_base
from controlllm.expansion.files.fingerprint import fingerprint
from controlllm.expansion.hub.expand import describe_base
from controlllm.expansion.method.plan import BlockPlan, extended_lists, plan_blocks
from controlllm.expansion.method.unread import check_settings
from controlllm.expansion.surgery.anatomy import examine, module_name, own_config
from controlllm.expansion.surgery.checks import check_parts, refuse_expanded
from controlllm.expansion.surgery.install import (
    Expansion,
    rename_tied_keys,
    set_trainable,
    trainable_names,
)
from controlllm.expansion.surgery.parts import make_block, make_ends
from controlllm.integrations.callback import ADAPTERS
from controlllm.integrations.peft.adapter import Adapter
from controlllm.integrations.peft.config import ControlLLMPeftConfig
from controlllm.integrations.peft.layer import AdaptedBlock, AdaptedEnd, AdaptedLayer
from controlllm.integrations.peft.names import BRANCHES, PARTS
from controlllm.integrations.peft.passes import ForwardPass

__all__ = ["Adapters", "adapters_of"]


def adapters_of(model: nn.Module) -> "Adapters":
    """The adapters of a base, or of one that PEFT has wrapped.

    Raises:
        ModelError: if it has none.
    """
    # Not get_base_model(), which wants an active adapter.
    base = model.base_model.model if isinstance(model, PeftModel) else model
    found = vars(base).get(ADAPTERS)
    if found is None:
        raise ModelError(
            f"{type(base).__name__} has no Control LLM adapters; add one by get_peft_model(), "
            "PeftModel.from_pretrained() or load_adapter()."
        )
    return found


class Adapters:
    """All adapters of one base, and what is needed to take them out again.

    Expanded blocks of one layer share one slot in the KV cache, whichever adapter they belong to:
    only one is active at a time.

    Args:
        model: the base; it is not changed until an adapter is put in.

    Raises:
        ModelError: if it cannot be expanded.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        refuse_expanded(model)
        own_config(model)
        anatomy = examine(model)
        self.model = model
        # A list of its own: the model's will hold adapted layers.
        self.anatomy = replace(anatomy, layers=nn.ModuleList(anatomy.layers))
        self.list_name = module_name(model, anatomy.layers)
        self.base = describe_base(model, anatomy)
        whole = not any(parameter.is_meta for parameter in model.parameters())
        self.base["fingerprint"] = fingerprint(model) if whole else None
        self.taken_names = {part for name in model.state_dict() for part in name.split(".")}
        self.trainable_before = trainable_names(model)
        self.tied_before = dict(getattr(model, "all_tied_weights_keys", {}) or {})
        self.config_before: dict[str, Any] = {}
        self.slots: list[int] = []
        self.named: dict[str, Adapter] = {}
        self.layers: dict[str, AdaptedLayer] = {}
        self.running: ForwardPass | None = None
        self._steps: int | None = None
        self.hooks = [
            model.register_forward_pre_hook(_begin_forward, with_kwargs=True),
            model.register_forward_hook(_end_forward, always_call=True),
        ]
        vars(model)[ADAPTERS] = self

    @skip_init_on_device  # PEFT's low_cpu_mem_usage would leave interpolators without values
    def add(self, name: str, settings: ControlLLMPeftConfig) -> Adapter:
        """Make the parts of a new adapter; `adapt` puts them in their places.

        Raises:
            ModelError, ConfigError, CheckpointError: if it cannot be made for this base, or was
                trained on another; nothing is changed then.
        """
        config = settings.expansion()
        check_settings(config)
        self._check(name, settings)
        plan = plan_blocks(config, self.anatomy.num_layers)
        check_parts(self.model, self.anatomy, plan, config)
        self._check_floats(plan)
        slots = self.slots + [block.layer for block in plan if block.layer not in self.slots]
        settings.base = dict(self.base)
        expansion = Expansion.planned(plan, config)
        expansion.state.gradient_accumulation_steps = self._steps
        for block in plan:
            slot = self.anatomy.num_layers + slots.index(block.layer)
            own = replace(block, cache_index=slot)
            expansion.blocks[block.layer] = make_block(self.anatomy, own, config, expansion.state)
        if config.expand_ends:
            expansion.ends = make_ends(self.anatomy, config, expansion.state)
        places = [f"{self.list_name}.{block.layer}" for block in plan]
        places += [self._end_name(end.pretrained) for end in expansion.ends.values()]
        adapter = self.named[name] = Adapter(settings, expansion, places)
        adapter._apply_dial(config.dial)
        self.slots = slots
        self._extend_config()
        return adapter

    def adapt(self, name: str, place: str, target: nn.Module) -> AdaptedLayer:
        """Put an adapter's part into its place, by the name that this has in the base.

        There stands `target` now: the base's own, or an adapted layer; returned is what is to.
        """
        layer = self.layers.get(place)
        if layer is None:
            make = AdaptedBlock if place.startswith(f"{self.list_name}.") else AdaptedEnd
            layer = self.layers[place] = make(target, self).train(target.training)
        layer.hold(name, self.named[name].places[place])
        return layer

    def without(self, name: str) -> list[str]:
        """Forget an adapter; gives the names of the others, sorted."""
        if name in self.named:
            was_active = self.active is self.named.pop(name)
            self.rename_tied()
            remaining = sorted(self.named)
            if was_active and remaining:
                warnings.warn(
                    f"Adapter {name} was active which is now deleted. Setting active adapter to "
                    f"{remaining[0]}.",
                    stacklevel=2,
                )
        return sorted(self.named)

    def remove(self) -> None:
        """Give the base back as it was before the first adapter."""
        for place, layer in self.layers.items():
            parent, _, child = place.rpartition(".")
            setattr(self.model.get_submodule(parent), child, layer.base_layer)
        self._restore_config()
        self.layers = {}
        self.rename_tied()
        set_trainable(self.model, self.trainable_before)
        for hook in self.hooks:
            hook.remove()
        for attribute in (ADAPTERS, "peft_config"):
            vars(self.model).pop(attribute, None)

    def rename_tied(self) -> None:
        """Tell transformers what tied weights are called now."""
        ends = [place for place, layer in self.layers.items() if isinstance(layer, AdaptedEnd)]
        if not ends:
            vars(self.model).pop("_tied_weights_keys", None)
            self.model.all_tied_weights_keys = dict(self.tied_before)
            return
        inside = [f"{PARTS}.{name}.expanded" for name, one in self.named.items() if one.tied]
        rename_tied_keys(self.model, ends, self.tied_before, ["base_layer", *inside])

    def _check(self, name: str, settings: ControlLLMPeftConfig) -> None:
        if name in self.taken_names | {"base_layer", "base_model", PARTS, *BRANCHES}:
            raise ConfigError(
                f"adapter_name={name!r} is a part of the names of this model's tensors, and PEFT "
                "would mix them up; choose another."
            )
        recorded = settings.recorded_base
        if recorded is None:
            return
        # Without weights (other processes have them) there is nothing to compare.
        if settings.check_base and self.base["fingerprint"] is not None:
            require_base(self.base, recorded, "The adapter", "pass check_base=False")
        if recorded.get("grown_vocab_size"):
            raise ModelError(
                f"The adapter has added tokens (a vocabulary of {recorded['grown_vocab_size']}), "
                "which the PEFT form cannot hold; load its sidecar by load_sidecar() instead."
            )

    def _check_floats(self, plan: tuple[BlockPlan, ...]) -> None:
        for block in plan:
            for name, parameter in self.anatomy.layers[block.layer].named_parameters():
                if not parameter.is_floating_point():
                    raise ModelError(
                        f"Layer {block.layer} is quantised ({name} is {parameter.dtype}), and a "
                        "copy of packed weights cannot be trained; load the base unquantised."
                    )

    def _end_name(self, module: nn.Module) -> str:
        """Where an end of the base stands, whether it is adapted already or not."""
        adapted = {id(layer.base_layer): place for place, layer in self.layers.items()}
        return adapted.get(id(module)) or module_name(self.model, module)

    def _restore_config(self) -> None:
        for key, value in self.config_before.items():
            setattr(self.anatomy.config, key, copy.copy(value))

    def _extend_config(self) -> None:
        """Caches size themselves by the config: it counts a layer for each slot."""
        config, L = self.anatomy.config, self.anatomy.num_layers
        self._restore_config()
        plan = [BlockPlan(layer, "", L + slot) for slot, layer in enumerate(self.slots)]
        changes: dict[str, Any] = {"num_hidden_layers": L + len(plan)}
        changes |= extended_lists(config.to_dict(), plan, L)
        self.config_before = {key: copy.copy(getattr(config, key)) for key in changes}
        for key, value in changes.items():
            setattr(config, key, value)

    @property
    def active(self) -> Adapter | None:
        """The adapter that a forward pass would use now; None if there is none."""
        layer = next(iter(self.layers.values()), None)
        if layer is None or layer.disable_adapters or not layer.active_adapters:
            return None
        return self.named.get(layer.active_adapters[0])

    def require_active(self) -> Adapter:
        """The active adapter.

        Raises:
            ModelError: if there is none.
        """
        adapter = self.active
        if adapter is None:
            raise ModelError("No adapter is active; set_adapter() makes one so.")
        return adapter

    @property
    def gradient_accumulation_steps(self) -> int | None:
        """As `ControlLLMForCausalLM.gradient_accumulation_steps`, for all adapters."""
        return self._steps

    @gradient_accumulation_steps.setter
    def gradient_accumulation_steps(self, steps: int | None) -> None:
        self._steps = steps
        for adapter in self.named.values():
            adapter.parts.state.gradient_accumulation_steps = steps

    def begin(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """A forward pass of the base begins; gives its arguments (None: no adapter is active)."""
        adapter = self.active
        if adapter is None:
            return None
        adapter.settle()
        for place in adapter.places:
            self.layers[place]._freeze_non_trainable_peft_weights()
        positions = self.model.get_submodule(self.list_name).children()
        self.running = ForwardPass(self.model, adapter.parts, positions)
        return self.running.begin(args, kwargs)

    def end(self, output: Any) -> Any:
        """It is over; gives the output that the caller is to have."""
        running, self.running = self.running, None
        return output if running is None else running.end(output)


def _begin_forward(model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return adapters_of(model).begin(args, kwargs)


def _end_forward(model: PreTrainedModel, args: Any, output: Any) -> Any:
    return adapters_of(model).end(output)
