"""Packed documents give what each gives alone; all else goes the way of sdpa or eager."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from controlllm.common.attention.attention import (
    PackedMask,
    packed_attention_for,
    register_packed_attention,
)
from controlllm.common.errors import ModelError
from controlllm.common.losses import cross_entropy_sum

LENGTHS = [7, 1, 12, 4, 9]
COMMON: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**COMMON),
    "qwen3": lambda: Qwen3Config(**COMMON),
    "mistral_sliding": lambda: MistralConfig(**COMMON, sliding_window=5),
    "gemma3_sliding": lambda: Gemma3TextConfig(
        **COMMON, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
    ),
    "gemma2_sliding_softcap": lambda: Gemma2Config(
        **COMMON,
        sliding_window=5,
        attn_logit_softcapping=2.0,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        **{k: v for k, v in COMMON.items() if k not in ("num_key_value_heads", "head_dim")}
    ),
    # Tells its window to the mask only, not to attention.
    "qwen2_moe_sliding": lambda: Qwen2MoeConfig(
        **COMMON,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=2,
        num_experts_per_tok=1,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=0,
    ),
}


def plain(name: str) -> str:
    """What the model does without packing; sdpa has no soft cap (releases before 5.23 drop it)."""
    return "eager" if name == "gemma2_sliding_softcap" else "sdpa"


def build(name: str, implementation: str | None = None) -> PreTrainedModel:
    """A tiny random model; equal names give equal weights. None: the packed twin of `plain`."""
    register_packed_attention()
    config = CONFIGS[name]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    model.set_attn_implementation(implementation or packed_attention_for(plain(name)))
    return model


def documents() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 61, (1, length), generator=generator) for length in LENGTHS]


def packed(parts: list[Tensor]) -> dict[str, Any]:
    ends = torch.tensor([0, *(part.shape[1] for part in parts)]).cumsum(0).int()
    positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    longest = max(part.shape[1] for part in parts)
    return {
        "input_ids": torch.cat(parts, dim=1),
        "position_ids": positions,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def labels_of(parts: list[Tensor]) -> Tensor:
    labels = [part.clone() for part in parts]
    for part in labels:
        part[:, 0] = -100
    return torch.cat(labels, dim=1)


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_loss_and_gradients_are_the_sum_over_documents(name: str, use_cache: bool) -> None:
    model, parts = build(name), documents()
    alone = sum(cross_entropy_sum(model(part).logits, part)[0] for part in parts)
    alone.backward()
    expected = gradients(model)
    logits = model(**packed(parts), use_cache=use_cache).logits
    total, count = cross_entropy_sum(logits, labels_of(parts))
    total.backward()
    assert count == sum(LENGTHS) - len(LENGTHS)
    assert total.item() == pytest.approx(alone.item(), abs=1e-4)
    assert torch.allclose(
        logits, torch.cat([model(part).logits for part in parts], dim=1), atol=1e-5
    )
    found = gradients(model)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key], value, atol=1e-4, rtol=1e-4), key


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_own_mask_from_positions_agrees(name: str) -> None:
    inputs = packed(documents())
    ours = build(name)(**inputs, use_cache=False).logits
    theirs = build(name, plain(name))(**inputs, use_cache=False).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_positions_alone_are_enough(name: str) -> None:
    """Without cu_seq_lens the documents are still kept apart, by the mask that is then built."""
    inputs = packed(documents())
    expected = build(name)(**inputs, use_cache=False).logits
    positions = {key: inputs[key] for key in ("input_ids", "position_ids")}
    assert torch.allclose(build(name)(**positions, use_cache=False).logits, expected, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_document_fills_the_row(name: str) -> None:
    part = documents()[2]
    model = build(name)
    assert torch.allclose(model(**packed([part])).logits, model(part).logits, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_padded_batches_and_generation_are_as_without(name: str) -> None:
    ours, theirs = build(name), build(name, plain(name))
    ids = torch.cat([documents()[2], documents()[2].flip(1)])
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    for inputs in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
        assert torch.equal(ours(**inputs).logits, theirs(**inputs).logits)
        options = {**inputs, "max_new_tokens": 8, "do_sample": False}
        assert torch.equal(ours.generate(**options), theirs.generate(**options))


def test_no_full_mask_is_built_for_a_packed_row(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    whole, document = PackedMask.whole, PackedMask.document
    monkeypatch.setattr(PackedMask, "whole", lambda self: built.append(self) or whole(self))
    seen = []
    monkeypatch.setattr(
        PackedMask, "document", lambda self, s, e: seen.append(document(self, s, e)) or seen[-1]
    )
    build("llama")(**packed(documents()), use_cache=False)
    assert not built
    assert seen and all(mask is None for mask in seen)


def test_checkpointing_gives_the_same_gradients() -> None:
    model, parts = build("mistral_sliding").train(), documents()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        logits = model(**packed(parts), use_cache=False).logits
        cross_entropy_sum(logits, labels_of(parts))[0].backward()
        results.append(gradients(model))
    for key, value in results[0].items():
        assert torch.equal(results[1][key], value), key


def test_a_model_without_sdpa_keeps_its_soft_cap() -> None:
    """The cap changes the loss here, so a twin that dropped it would be seen."""
    capped, free = build("gemma2_sliding_softcap"), build("gemma2_sliding_softcap")
    for module in free.modules():
        if hasattr(module, "attn_logit_softcapping"):
            module.attn_logit_softcapping = None
    inputs = packed(documents())
    assert not torch.allclose(capped(**inputs).logits, free(**inputs).logits, atol=1e-2)


def test_wrong_layouts_are_refused() -> None:
    model, inputs = build("llama"), packed(documents())
    short = {**inputs, "cu_seq_lens_q": inputs["cu_seq_lens_q"][:-1]}
    with pytest.raises(ModelError, match="cu_seq_lens_q"):
        model(**short)
    two = {**inputs, "input_ids": inputs["input_ids"].repeat(2, 1)}
    with pytest.raises(ModelError, match="one row"):
        model(**two)


def test_names_of_other_implementations_stay() -> None:
    assert packed_attention_for("flash_attention_2") == "flash_attention_2"
    assert packed_attention_for("packed_sdpa") == "packed_sdpa"
    assert packed_attention_for(None) == "packed_sdpa"
