"""`expand`: a base model in, an expanded model out, with exactly the same outputs."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from controlllm.common.errors import ConfigError, ModelError
from controlllm.expansion.files.base_record import origin
from controlllm.expansion.files.fingerprint import fingerprint
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.method.block import ConcatBlock, ExpandedBlock
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.expansion.method.plan import plan_blocks
from controlllm.expansion.method.several import SharedBlock
from controlllm.expansion.method.unread import check_settings
from controlllm.expansion.surgery.anatomy import Anatomy, examine
from controlllm.expansion.surgery.checks import refuse_expanded
from controlllm.expansion.surgery.install import expanded_list
from controlllm.expansion.surgery.quantised import parameter_count, quantised_kind, quantised_layers

__all__ = ["block_parts", "decoder_blocks", "describe_base", "expand"]


def expand(
    model: PreTrainedModel, config: ExpansionConfig | None = None, **settings: Any
) -> ControlLLMForCausalLM:
    """Expand a decoder-only model by Control LLM.

    The model is taken over: its blocks become the frozen branches, no weight is copied but those
    that will train. Outputs do not change by a bit; `unload()` gives the model back.

    A base may be quantised by bitsandbytes or torchao: the copies are of the numbers it computes
    with, in the float type of what is not quantised. Outputs then change by what its kernels round
    otherwise than plain ones (docs/training-options.md has the numbers).

    Args:
        model: any Hugging Face decoder-only model (`AutoModelForCausalLM`).
        config: how to expand; or give its fields as keywords.
        **settings: fields of `ExpansionConfig`, instead of `config`.

    Returns:
        The expanded model, a `PreTrainedModel`, in the same training mode.

    Raises:
        ModelError, ConfigError: if the model cannot be expanded so, or a setting would not be used;
            it is then untouched.

    >>> base = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")         # doctest: +SKIP
    >>> model = expand(base, num_blocks=7)                                     # doctest: +SKIP
    """
    if config is not None and settings:
        raise ConfigError(f"Give either a config or its fields {sorted(settings)}, not both.")
    config = config or ExpansionConfig.from_dict(settings)
    check_settings(config)
    refuse_expanded(model)
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ModelError(
            "DeepSpeed ZeRO-3 has cut this model's weights already, so its blocks cannot be "
            "copied. Load and expand it before TrainingArguments(deepspeed=...) is made; the "
            "trainer then cuts base and copies."
        )
    anatomy = examine(model)
    plan_blocks(config, anatomy.num_layers)  # refuses before anything is made
    base = describe_base(model, anatomy)
    if config.freeze is not None:  # parts of the base will change: know it while it is itself
        base["fingerprint"] = fingerprint(model)
    hf_config = ControlLLMConfig(text_config=model.config, expansion=config.to_dict(), base=base)
    hf_config._attn_implementation = model.config._attn_implementation
    # Tools look here for the tokenizer, and for the model that this one was made from.
    hf_config.name_or_path = base["name_or_path"]
    expanded = ControlLLMForCausalLM(hf_config, base=model)
    expanded.generation_config = model.generation_config
    return expanded.train(model.training)


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The blocks of a model that is expanded or not, in order (ModelError: there are none)."""
    if isinstance(model, ControlLLMForCausalLM):
        return expanded_list(model.base, model._installed)
    return examine(model).layers


def block_parts(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What of a decoder block computes by itself, in the order of a forward pass: name and module.

    The frozen block, and of each sidecar the copy and the interpolator; a block that is not
    expanded is its only part, without a name.
    """
    if isinstance(block, SharedBlock):
        yield "pretrained", block.pretrained
        for place, one in block.sidecars.items():
            yield from ((f"sidecars.{place}.{name}", part) for name, part in _beside(one))
    elif isinstance(block, ExpandedBlock):
        yield "pretrained", block.pretrained
        yield from _beside(block)
    else:
        yield "", block


def _beside(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What an expanded block has beside its frozen one."""
    yield "expanded", block.expanded  # type: ignore[misc]  # a ModuleDict tells no types
    if isinstance(block, ConcatBlock):
        yield "interpolator", block.interpolator


def describe_base(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, Any]:
    """What saved forms record of the base, without its fingerprint.

    `quantised` lists how its layers were quantised when it was expanded (none: an empty list).
    """
    return {
        **origin(model),
        "num_hidden_layers": anatomy.num_layers,
        "vocab_size": getattr(anatomy.config, "vocab_size", None),
        "quantised": sorted({str(quantised_kind(layer)) for _, layer in quantised_layers(model)}),
        "num_parameters": parameter_count(model),
    }
