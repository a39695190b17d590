"""A model's context: how many positions it knows, and what longer rows come to."""

import warnings
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from controlllm.common.errors import ModelError

__all__ = ["check_length", "context_of"]

_OFFSETS = 8
"""Position tables hold a few rows more than positions in some architectures (OPT: 2)."""


def context_of(model: nn.Module) -> int | None:
    """The positions that a model knows; None where its config does not say."""
    config: Any = model.config
    context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return context


def check_length(setting: str, length: int, model: PreTrainedModel) -> None:
    """Warn of rows that may be longer than the model's context.

    Rotary and like positions go on beyond it, though the base has seen none; a table ends there.

    Raises:
        ModelError: its positions are a table, which has no row for them.
    """
    context = context_of(model)
    if context is None or length <= context:
        return
    text = f"{setting}={length} is above the context of {type(model).__name__}, {context} positions"
    words = model.get_input_embeddings()
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words)
    if any(context <= table.num_embeddings <= context + _OFFSETS for table in tables):
        raise ModelError(f"{text}, and it has a learned row for each; set at most {context}.")
    warnings.warn(
        f"{text}: longer rows are computed at positions that it has never seen. Set at most "
        f"{context}, or give the base a config for longer ones (rope_scaling).",
        stacklevel=3,
    )
