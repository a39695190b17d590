"""Weights straight into a sharded model: no process ever holds the whole of it.

```
config --> model on the meta device --> expand --> shard --> empty parts
                                   safetensors files, slice by slice --'
```
Every process reads slices of the base's safetensors files; a frozen block and its copy read the
same ones. Nothing is written on the way.

ZeRO-3 shares out tensors that are there already. So under it the blocks come one after the other:
the first process reads one whole, and all of them cut it before the next is read.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from controlllm.checkpoint import Kind, locate
from controlllm.checkpoint.models.whole import check_files, download, from_pretrained
from controlllm.checkpoint.training.shards import fill_some, tensor_shapes
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.remote import is_remote
from controlllm.common.storage.tensor_files import require_numbers
from controlllm.expansion import ControlLLMForCausalLM, StackBlock
from controlllm.expansion.files.base_files import BaseFiles
from controlllm.expansion.files.fingerprint import BRANCHES, base_name
from controlllm.expansion.files.records import read_model_file
from controlllm.expansion.surgery.anatomy import residual_projections
from controlllm.train.config.run_config import RunConfig
from controlllm.train.parallel.sharding import sharding_units
from controlllm.train.parallel.world import World

__all__ = ["build_on_meta", "fill_by_units", "fill_from", "is_without_weights", "weights_to_shard"]

log = logging.getLogger(__name__)


def weights_to_shard(run: RunConfig, world: World) -> Path | None:
    """The folder whose weights can be read in parts; None where the model must be loaded whole.

    Collective where there are several processes.
    """
    if not world.cuts_weights or run.model.model_name_or_path is None:
        return None
    if why := _why_whole(run):
        log.info("Each process loads the whole model first: %s", why)
        return None
    folder = world.ranks.first(lambda: _folder(run))
    if folder and "quantization_config" in read_model_file(Path(folder)):
        log.info("Each process loads the whole model first: it was saved quantised")
        return None
    return Path(folder) if folder else None


def _why_whole(run: RunConfig) -> str | None:
    """What of a run needs the base in one piece before it is sharded."""
    hooks = [source.postprocess for source in [*run.data.train, *run.data.replay]]
    reasons = {
        "it goes on from another run": run.continue_from is not None,
        "a postprocess hook may use it": any(hooks),
        "the base writes what is rehearsed": run.rehearsal.enabled,
        "its frozen blocks are quantised (model.quantize_base)": run.quantizer is not None,
        "adapters are made around its weights (peft)": run.adapters is not None,
        "parts of the base train (expansion.freeze)": run.expansion.freeze is not None,
    }
    return next((why for why, is_so in reasons.items() if is_so), None)


def _folder(run: RunConfig) -> str | None:
    """Where the base's config and safetensors files lie on this machine."""
    assert run.model.model_name_or_path is not None
    location = locate(run.model.model_name_or_path, run.model.storage_options)
    if location.kind is Kind.HUB:
        folder = download(location.path, run.model.revision, run.model.trust_remote_code)
        location = locate(folder)  # a sidecar or an adapter, may be
    return location.path if location.kind is Kind.PLAIN else None


def build_on_meta(folder: Path, run: RunConfig) -> PreTrainedModel | None:
    """The base without weights; its buffers are real.

    Returns:
        None where its files name or shape the weights in another way than the model does.

    Raises:
        CheckpointError: one of them is broken or truncated.
    """
    from accelerate import init_empty_weights

    check_files(str(folder))
    config = from_pretrained(AutoConfig.from_pretrained, str(folder), run.model)
    dtype = config.dtype if run.model.dtype == "auto" else getattr(torch, run.model.dtype)
    settings: dict[str, Any] = {"dtype": dtype, "trust_remote_code": run.model.trust_remote_code}
    if run.model.attn_implementation:
        settings["attn_implementation"] = run.model.attn_implementation
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **settings)
    model.tie_weights()
    name = str(run.model.model_name_or_path)
    model.config._name_or_path = str(folder) if is_remote(name) else name
    shapes = tensor_shapes(folder)
    for name, parameter in model.named_parameters():
        if shapes.get(name) != tuple(parameter.shape):
            log.info("Each process loads the whole model first: %s is not in its files", name)
            return None
    for name in model.state_dict().keys() & {name for name, _ in model.named_buffers()}:
        log.info("Each process loads the whole model first: %s is not a parameter", name)
        return None
    return model


def fill_from(folder: Path, model: nn.Module, world: World, device: torch.device) -> None:
    """Read the weights of a sharded model that is on the meta device. Collective.

    Parameters that are not on the meta device keep their values.

    Raises:
        CheckpointError: a weight is missing.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    real = {name: tensor.detach().clone() for name, tensor in tensors if not tensor.is_meta}
    missing = {name for name, tensor in tensors if tensor.is_meta}
    model.to_empty(device=device)
    named = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for name, values in real.items():
            named[name].copy_(values.to(device))
    for branch in BRANCHES:  # Both have a tensor of one name in the files.
        wanted = {
            base_name(name): named[name]
            for name in missing
            if (branch == "expanded") == ("expanded" in name.split("."))
        }
        fill_some(folder, wanted, world.ranks)
    with torch.no_grad():
        for parameter in _zeroed(model):
            parameter.zero_()
    _agree_on_numbers(list(model.named_parameters()), folder, world)


@torch.no_grad()
def fill_by_units(
    folder: Path,
    model: nn.Module,
    world: World,
    device: torch.device,
    dtype: torch.dtype | None = None,
    cut: Callable[[Sequence[nn.Parameter]], None] | None = None,
) -> None:
    """Read the weights of a model of `build_on_meta`, block by block, in `dtype`. Collective.

    Parameters that are not on the meta device keep their values. `cut` is called with those of each
    part once the first process has read them, to share them out among all; without it all do.
    """
    files = BaseFiles.in_folder(folder)
    names = {parameter: name for name, parameter in model.named_parameters()}
    zeroed = {names[parameter] for parameter in _zeroed(model)}
    made: dict[nn.Parameter, nn.Parameter] = {}  # Tied weights are one again.
    for unit in [*sharding_units(model), model]:
        empty: dict[str, nn.Parameter] = {}
        for module in unit.modules():
            for key, parameter in module._parameters.items():
                if parameter is None or not parameter.is_meta:
                    continue
                if parameter not in made:
                    room = torch.empty_like(parameter, dtype=dtype, device=device)
                    made[parameter] = nn.Parameter(room, parameter.requires_grad)
                    empty[names[parameter]] = made[parameter]
                module._parameters[key] = made[parameter]
        filled = empty if cut is None or world.is_first else {}
        for name, parameter in filled.items():
            if name in zeroed:
                parameter.zero_()
            else:
                parameter.copy_(files.read(base_name(name)))
        _agree_on_numbers(list(filled.items()), folder, world)
        if cut is not None:
            cut(list(empty.values()))
    for parameter in names.keys() - made.keys():
        parameter.data = parameter.data.to(device, dtype)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def _agree_on_numbers(tensors: list[tuple[str, nn.Parameter]], folder: Path, world: World) -> None:
    """Fail on all processes where weights that one of them has read are not numbers. Collective."""
    error: CheckpointError | None = None
    try:
        require_numbers(tensors, str(folder))
    except CheckpointError as found:
        error = found
    world.ranks.agree(error)


def is_without_weights(model: nn.Module) -> bool:
    """Whether any parameter is on the meta device."""
    return any(parameter.is_meta for parameter in model.parameters())


def _zeroed(model: nn.Module) -> Iterator[nn.Parameter]:
    """What `expand` sets to 0, so that a stacked copy begins as the identity."""
    if isinstance(model, ControlLLMForCausalLM):
        for block in model.blocks.values():
            if isinstance(block, StackBlock):
                yield from residual_projections(
                    block.expanded, model.expansion.residual_projections
                )
