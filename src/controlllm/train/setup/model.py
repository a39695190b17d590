"""The base model and its tokenizer, loaded and set up for training."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint import find_tokenizer, load_model
from controlllm.common.attention.attention import packed_attention_for, register_packed_attention
from controlllm.common.context import check_length
from controlllm.common.errors import ConfigError
from controlllm.data import resolve_chat_template
from controlllm.expansion.surgery.anatomy import own_config
from controlllm.train.config.run_config import RunConfig
from controlllm.train.config.training_config import TrainingConfig
from controlllm.train.parallel.device import find_device
from controlllm.train.parallel.loading import build_on_meta
from controlllm.train.setup.activations import enable_checkpointing
from controlllm.train.setup.quantize import quantize_base
from controlllm.train.setup.ways.contract import GOINGS, Earlier, Stage

__all__ = ["Loaded", "load_base", "place_stage", "tune_model"]

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""A model and its tokenizer."""


def load_base(
    run: RunConfig,
    loaded: Loaded | None = None,
    files: Path | None = None,
    earlier: Earlier | None = None,
) -> Loaded:
    """The model on its device, with an attention that keeps packed documents apart.

    Args:
        run: its `model` and `data` are used.
        loaded: model and tokenizer to use instead of loading `run.model`. The model is taken
            over, the tokenizer is copied: the run's chat template is not set on the caller's.
        files: where its weights lie, if they are to be read once it is sharded: then it comes on
            the meta device, without weights.
        earlier: what the run goes on from.

    Returns:
        The model, and its tokenizer with the chat template that the run trains on.

    Raises:
        ConfigError: if the device is not there, or the tokenizer has no EOS token.
        ModelError: if `data.max_length` is beyond the positions that the model can have.
        CheckpointError: if the model cannot be loaded.
    """
    device = find_device(run.model.device)
    empty = build_on_meta(files, run) if files is not None else None
    if empty is not None:
        model, tokenizer = empty, find_tokenizer(str(files), run.model)
    else:
        if earlier is not None:
            model, tokenizer = GOINGS.get(run.continue_by).load(earlier, run)
        else:
            model, tokenizer = _load(run) if loaded is None else (loaded[0], deepcopy(loaded[1]))
        own_config(model)  # Its attention may become another one.
        module: torch.nn.Module = model
        module.to(device)
        if run.quantizer is not None and run.quantizer.at_load:
            dtype = run.training.autocast_dtype or model.dtype
            quantize_base(model, str(run.model.quantize_base), dtype)
    # Before anything is written by the base, or read to be trained on.
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the tokenizer has no eos_token, so that no text and no answer can end; name another "
            "one (model.tokenizer_name_or_path), or write its eos_token into tokenizer_config.json."
        )
    check_length("data.max_length", run.data.max_length, model)
    # Whoever talks to the trained model must use the template it was trained with.
    tokenizer.chat_template = resolve_chat_template(run.data.chat_template, tokenizer)
    _let_pack(model, run)
    return model, tokenizer


def place_stage(stage: Stage, run: RunConfig) -> Stage:
    """A stage whose copy, if it has one, is where the model is, and takes the same batches."""
    if stage.copy is not None:
        own_config(stage.copy)
        module: torch.nn.Module = stage.copy
        module.to(find_device(run.model.device))
        _let_pack(stage.copy, run)
    return stage


def _let_pack(model: PreTrainedModel, run: RunConfig) -> None:
    """Give a model an attention that keeps packed documents apart, if the run packs."""
    if run.data.packing:
        register_packed_attention()
        current = model.config.get_text_config(decoder=True)._attn_implementation
        model.set_attn_implementation(packed_attention_for(current))


def _load(run: RunConfig) -> Loaded:
    assert run.model.model_name_or_path is not None  # `train` has checked
    options = run.model
    if run.quantizer is not None and not run.quantizer.at_load:  # Later, when it is expanded.
        options = replace(options, quantize_base=None)
    return load_model(run.model.model_name_or_path, options)


def tune_model(model: PreTrainedModel, training: TrainingConfig) -> PreTrainedModel:
    """Set precision and checkpointing for training, in place."""
    if training.autocast_dtype is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    enable_checkpointing(model, training)
    return model
