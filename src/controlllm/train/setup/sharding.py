"""Stage 3: the model in parts on its processes, with all of its weights."""

import torch

from controlllm.checkpoint import describe_model
from controlllm.train.parallel import shard_model
from controlllm.train.parallel.deepspeed_config import check_precision, zero3_cutter
from controlllm.train.parallel.device import find_device
from controlllm.train.parallel.loading import fill_by_units, fill_from, is_without_weights
from controlllm.train.parallel.sharding import sharding_units
from controlllm.train.setup.activations import compile_blocks
from controlllm.train.setup.model import tune_model
from controlllm.train.setup.quantize import check_shared, quantize_base
from controlllm.train.setup.stages import Prepared, Sharded, fields_of
from controlllm.train.step.liger import apply_liger_kernels

__all__ = ["shard"]


def shard(prepared: Prepared) -> Sharded:
    """Quantise, shard and compile the model, and copies of what it was before; read their weights.

    Collective where there are several processes.
    """
    run, world, training = prepared.run, prepared.world, prepared.run.training
    if run.quantizer is not None and not run.quantizer.at_load:
        quantize_base(prepared.model, str(run.model.quantize_base))
    check_shared(prepared.model, run.parallel if world.shares else None)
    model = tune_model(prepared.model, training)
    copies = [one.copy for one in prepared.references.values() if one.copy is not None]
    if training.use_liger_kernel:
        for module in [model, *copies]:
            apply_liger_kernels(module, training)
    compute, files = training.autocast_dtype, prepared.files
    if run.parallel.way.by_deepspeed:
        check_precision(model, compute)
    if training.torch_compile:
        compile_blocks(list(sharding_units(model)))
    for module in [model, *copies]:
        shard_model(module, world, compute)
        if files is None or not is_without_weights(module):
            continue
        device = find_device(run.model.device)
        if world.mesh is not None:
            fill_from(files, module, world, device)
        elif module is model:
            cut = zero3_cutter(prepared.engine_settings)
            fill_by_units(files, module, world, device, compute or torch.float32, cut)
        else:  # No engine will have it, so it stays whole.
            fill_by_units(files, module, world, device)
    describe_model(model)  # Notes which base it is, before anything trains. Collective.
    return Sharded(**fields_of(prepared))
