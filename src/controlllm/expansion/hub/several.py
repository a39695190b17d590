"""Several named sidecars onto one base, from their folders."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from controlllm.common.errors import ConfigError
from controlllm.expansion.files.base_record import require_base
from controlllm.expansion.files.fingerprint import fingerprint
from controlllm.expansion.files.records import read_sidecar_config
from controlllm.expansion.hub.expand import describe_base
from controlllm.expansion.hub.named import Sidecar, check_alone, check_names
from controlllm.expansion.hub.sidecar_loading import load_sidecar
from controlllm.expansion.hub.sidecars import SidecarsForCausalLM
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.hf_config import SidecarsConfig
from controlllm.expansion.surgery.anatomy import examine
from controlllm.expansion.surgery.checks import refuse_expanded

__all__ = ["load_sidecars"]


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
    config = SidecarsConfig(text_config=base.config, base=about)
    config._attn_implementation = base.config._attn_implementation
    config.name_or_path = about["name_or_path"]
    model = SidecarsForCausalLM(config, base, named)
    model.generation_config = base.generation_config
    return model.eval()


_SAME = ("fingerprint", "grown_vocab_size")
"""What a sidecar's record of its base says of the model that several are put on."""


def _prepared(
    base: PreTrainedModel, folder: str | os.PathLike[str], tensors: dict[str, Tensor] | None
) -> Sidecar:
    """A sidecar's parts, made and checked on the base, which is then as it was."""
    return Sidecar.of(load_sidecar(base, Path(folder), check_base=False, tensors=tensors))
