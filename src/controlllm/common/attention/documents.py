"""Packed documents: what a model is told of them, and whether it keeps them apart.

Every attention implementation tells documents by what `document_keys` makes: flash attention by
`cu_seq_lens_*`, all others by positions that restart. Whether a live model does is tried out.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from controlllm.common.errors import ModelError
from controlllm.common.packages.bitsandbytes import bnb_kind

__all__ = ["IN_CHUNKS", "check_packing", "document_keys"]

IN_CHUNKS = "attention in chunks does not restart with packed documents; set data.packing=false."
"""Why a model such as Llama 4 cannot be trained on packed rows."""

REMEDY = (
    "set data.packing=false, or another model.attn_implementation (sdpa, eager, flex_attention, "
    "flash_attention_2)."
)


def document_keys(cu_seq_lens: Tensor) -> dict[str, Any]:
    """What a model is told of the documents in a packed row, besides their tokens.

    Args:
        cu_seq_lens: where each document begins, then the end of the row (documents + 1, int32).

    Returns:
        `position_ids` (1, T), and the keys of transformers' flash attention.
    """
    # numpy is several times quicker than torch at arrays of this size.
    bounds = cu_seq_lens.numpy(force=True).astype(np.int64)
    lengths = bounds[1:] - bounds[:-1]
    positions = np.arange(bounds[-1])
    positions -= bounds[:-1].repeat(lengths)
    longest = int(lengths.max())
    return {
        "position_ids": torch.from_numpy(positions)[None].to(cu_seq_lens.device),
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Try out whether a model keeps packed documents apart: three passes over a few tokens.

    Two documents are packed, the first once with other tokens; then the second runs alone. Call it
    in the precision of training, with the attention of training.

    Raises:
        ModelError: the second document comes out otherwise, so packing would train on mixed text;
            or what comes out are no numbers at all.
    """
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "attention_chunk_size", None):
        raise ModelError(IN_CHUNKS)
    first, other, second = (
        (torch.arange(start, start + length, device=model.device) % config.vocab_size)[None]
        for start, length in ((1, 6), (11, 6), (3, 5))
    )
    ends = torch.tensor([0, 6, 11], dtype=torch.int32, device=model.device)
    name = f"{type(model).__name__} with attn_implementation={config._attn_implementation!r}"
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        packed, again = (
            model(torch.cat([part, second], 1), use_cache=False, **document_keys(ends)).logits
            for part in (first, other)
        )
        alone = model(second, use_cache=False).logits
    except TypeError as error:
        raise ModelError(f"{name} does not accept packed rows ({error}); {REMEDY}") from error
    finally:
        for module, training in modes:
            module.training = training
    _check_numbers(model, alone)
    # LLM.int8 rounds what comes in to 8 bits, by outliers that it looks for in the whole batch.
    coarse = any(bnb_kind(module) == "bnb_int8" for module, _ in modes)
    eps = torch.finfo(torch.bfloat16 if coarse else packed.dtype).eps
    _check_same(packed[:, 6:], again[:, 6:], eps, f"{name} lets packed documents see each other")
    _check_same(
        packed[:, 6:], alone, eps, f"{name} does not restart positions with packed documents"
    )


def _check_numbers(model: Any, logits: Tensor) -> None:
    if not logits.isnan().any():
        return
    weights = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    plain = ((name, w) for name, w in weights if type(w) is Tensor and w.is_floating_point())
    first = next((name for name, weight in plain if not weight.isfinite().all()), None)
    cause = "its precision may be too narrow" if first is None else f"neither are those of {first}"
    raise ModelError(
        f"{type(model).__name__} computes values that are not numbers (nan): {cause}. Use an "
        "intact base model, or another dtype, or other training.bf16."
    )


def _check_same(logits: Tensor, expected: Tensor, eps: float, problem: str) -> None:
    """Equal but for the rounding of other kernels and shapes."""
    off = (logits.float() - expected.float()).abs().max()
    if not off <= eps**0.5 * expected.float().abs().max():
        raise ModelError(f"{problem}; {REMEDY}")
