"""Packed as our collator packs: each document gives the logits that it gives alone.

Over architectures, attention implementations, and expanded models. Flash attention has no kernel
for CPUs: here transformers' own flash path runs, with the kernel's function replaced by one of the
same signature that computes document by document in plain torch (`varlen_by_torch`). Flex attention
runs uncompiled: what torch 2.13 compiles for CPUs gives nan for rows of 72 tokens, packed or not.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import transformers.modeling_flash_attention_utils as flash
from tests.laws.architectures import ARCHITECTURES, VOCAB, make_base
from tests.laws.models import VARIANTS, make_trained
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import flash_attention_mask

from controlllm.common.attention.attention import packed_attention_for, register_packed_attention
from controlllm.common.attention.documents import check_packing
from controlllm.data.examples.encode import Example
from controlllm.data.loader.collate import PADDING, Batch, model_inputs, packed_batch

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without", "ignore:_compile")
SLOT = 24
SLOTS = [[7, 1, 12], [9, 2], [24]]
"""Documents of three slots: the first two have an unused end, of 4 and 13 tokens."""
NO_SDPA = {"gemma2"}
NO_FLASH = {"gpt2"}  # float32 makes transformers look for a Linear in its attention: it has none
IMPLEMENTATIONS = ("eager", "sdpa", "packed_eager", "packed_sdpa", "flash_by_torch")
FLEX = ("llama", "mistral", "qwen2-windowed", "qwen3", "gemma2", "gemma3")
MATRIX = [
    (name, how)
    for name in ARCHITECTURES
    for how in (*IMPLEMENTATIONS, "flex_attention")
    if not ("sdpa" in how and name in NO_SDPA) and not ("flash" in how and name in NO_FLASH)
    if how != "flex_attention" or name in FLEX
]


def varlen_by_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """As `flash_attn_varlen_func`: q, k, v (T, H, D) -> (T, H, D)."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q[0] == 0 and cu_seqlens_q[-1] == len(q) == len(k)
    assert causal and torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert isinstance(max_seqlen_q, int)
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
    parts = []
    for start, end in pairwise(cu_seqlens_q.tolist()):
        query, key, value = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        key, value = (repeat_kv(x, q.shape[1] // k.shape[1]) for x in (key, value))
        scores = query @ key.transpose(2, 3) * (softmax_scale or q.shape[-1] ** -0.5)
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        back = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (back >= 0) & ((back <= window_size[0]) if window_size[0] >= 0 else True)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        parts.append((weights @ value)[0].transpose(0, 1))
    return torch.cat(parts)


def flash_by_torch(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """As `flash_attn_func`: q, k, v (B, T, H, D) -> (B, T, H, D); each row is a document."""
    batch, length = q.shape[:2]
    ends = torch.arange(batch + 1, dtype=torch.int32) * length
    rows = (x.flatten(0, 1) for x in (q, k, v))
    return varlen_by_torch(*rows, ends, ends, length, length, **options).view_as(q)


@pytest.fixture(autouse=True, scope="module")
def implementations() -> Iterator[None]:
    """Our implementations, and transformers' flash path with a kernel that runs on CPUs."""
    register_packed_attention()
    AttentionInterface.register("flash_by_torch", flash_attention_forward)
    AttentionMaskInterface.register("flash_by_torch", flash_attention_mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "_loaded_implementation", "flash_by_torch")
        patch.setattr(flash, "_flash_fn", flash_by_torch)
        patch.setattr(flash, "_flash_varlen_fn", varlen_by_torch)
        made = flash._lazy_define_process_function(varlen_by_torch)
        patch.setattr(flash, "_process_flash_kwargs_fn", made)
        yield


def batch_of(seed: int = 0, keep: int | None = None, pad_id: int = 0, device: Any = "cpu") -> Batch:
    """The slots with random tokens; other seeds change all documents but number `keep`."""
    slots, number = [], 0
    for lengths in SLOTS:
        slot = []
        for length in lengths:
            random = np.random.default_rng([0 if number == keep else seed, number])
            ids = random.integers(3, VOCAB, length).astype(np.int32)
            slot.append((Example(ids, ids), 0))
            number += 1
        slots.append(slot)
    batch = packed_batch(slots, SLOT, pad_id)
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def documents(batch: Batch) -> list[slice]:
    """Where the documents are, the unused ends left out."""
    bounds = pairwise(batch["cu_seq_lens_q"].tolist())
    places = [slice(start, end) for start, end in bounds]
    return [place for place in places if batch["origin"][0, place.start] != PADDING]


def logits_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    inputs = {k: v for k, v in model_inputs(batch).items() if k != "labels"}
    return model(**inputs).logits[0]


def check(model: PreTrainedModel, how: str, tolerance: float = 1e-5) -> None:
    """Each document as alone, and the same whatever stands beside it."""
    batch = batch_of(device=model.device)
    model.set_attn_implementation("eager")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        alone = [
            model(batch["input_ids"][:, d], use_cache=False).logits[0] for d in documents(batch)
        ]
        model.set_attn_implementation(how)
        packed = logits_of(model, batch)
        for number, (place, expected) in enumerate(zip(documents(batch), alone, strict=True)):
            # A share of the largest logit, some 1 to 30.
            close = {"atol": tolerance * max(1.0, expected.abs().max().item()), "rtol": 0.0}
            torch.testing.assert_close(packed[place], expected, **close)
            other = logits_of(model, batch_of(1, keep=number, pad_id=2, device=model.device))
            torch.testing.assert_close(other[place], packed[place], **close)
        assert len(alone) == sum(map(len, SLOTS))
        check_packing(model)


@pytest.mark.parametrize(("name", "how"), MATRIX)
def test_documents_of_a_packed_batch_are_as_alone(name: str, how: str) -> None:
    check(make_base(name), how)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_documents_of_an_expanded_model_are_as_alone(name: str) -> None:
    plain = "eager" if name in NO_SDPA else "sdpa"
    check(make_trained(name), packed_attention_for(plain))
    if name not in NO_FLASH:
        check(make_trained(name), "flash_by_torch")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("how", [*IMPLEMENTATIONS, "flex_attention"])
def test_every_structure_keeps_documents_apart(variant: str, how: str) -> None:
    check(make_trained("llama", variant), how)


def test_the_law_can_be_broken() -> None:
    """The same batch without its keys mixes documents, and the check sees it."""
    model = make_base("llama")
    mixed = {k: v for k, v in batch_of().items() if k in ("input_ids", "labels", "origin")}
    right, wrong = logits_of(model, batch_of()), logits_of(model, mixed)
    place = documents(batch_of())[2]
    assert not torch.allclose(right[place], wrong[place], atol=1e-2)


@pytest.mark.parametrize(
    ("model_type", "settings", "problem"),
    [
        ("bloom", {"n_layer": 2, "n_head": 4}, "packed"),
        ("mamba", {"num_hidden_layers": 2, "state_size": 4}, "packed"),
        ("llama4_text", {"attention_chunk_size": 8}, "in chunks"),
    ],
)
def test_a_model_that_mixes_documents_is_refused(
    model_type: str, settings: dict[str, Any], problem: str
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from controlllm.common.errors import ModelError

    common = {"vocab_size": VOCAB, "hidden_size": 32, "initializer_range": 0.3, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **common | settings)
    if model_type == "llama4_text":
        config.num_hidden_layers, config.intermediate_size, config.intermediate_size_mlp = 2, 32, 32
        config.layer_types, config.no_rope_layers = ["chunked_attention", "full_attention"], [1, 0]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=rf"{problem}.*data\.packing=false"):
        check_packing(model)
    assert model.training is False or all(m.training for m in model.modules())
