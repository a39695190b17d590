"""The laws in bfloat16 on a GPU, where other kernels run than on a CPU."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.laws.architectures import make_base
from tests.laws.models import VARIANTS, logits, make_trained, settings_of
from tests.laws.test_packing import batch_of, check, documents, logits_of
from torch.nn.attention import SDPBackend, sdpa_kernel

from controlllm.common.attention.attention import register_packed_attention
from controlllm.expansion import expand

pytestmark = pytest.mark.gpu
NAMES = ("llama", "qwen3")
PACKED = torch.finfo(torch.bfloat16).eps ** 0.5
"""Of the largest logit, as `check_packing` has it: kernels round in other places."""


def on(gpu: str, model: Any) -> Any:
    return model.to(gpu, torch.bfloat16)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_expanding_leaves_logits_bit_for_bit(gpu: str, name: str, variant: str) -> None:
    base = logits(on(gpu, make_base(name)))
    model = expand(on(gpu, make_base(name)), **settings_of(variant))
    assert torch.equal(logits(model.eval()), base)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_base_is_there_bit_for_bit_after_training(gpu: str, name: str, variant: str) -> None:
    base, model = logits(on(gpu, make_base(name))), on(gpu, make_trained(name, variant))
    trained = logits(model)
    assert not torch.equal(trained, base)
    with model.disable_expansion():
        assert torch.equal(logits(model), base)
    model.set_alpha(0.0)
    assert torch.equal(logits(model), base)
    model.set_alpha(None)
    assert torch.equal(logits(model), trained)
    assert torch.equal(logits(model.unload()), base)


@pytest.mark.parametrize("kernel", ["any", "flash"])
@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_documents_are_as_alone(gpu: str, variant: str | None, kernel: str) -> None:
    """By our loop over torch's own attention, of which one kernel is flash attention."""
    register_packed_attention()
    model = on(gpu, make_base("llama") if variant is None else make_trained("llama", variant))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if kernel == "flash" else nullcontext():
        check(model, "packed_sdpa", PACKED)


def test_mixed_documents_are_farther_off_than_rounding(gpu: str) -> None:
    model, batch = on(gpu, make_base("llama")), batch_of(device=gpu)
    mixed = {key: batch[key] for key in ("input_ids", "labels", "origin")}
    place = documents(batch)[2]
    right, wrong = logits_of(model, batch)[place], logits_of(model, mixed)[place]
    assert (right - wrong).abs().max() > 2 * PACKED * right.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_documents_are_as_alone_by_the_flash_attention_package(gpu: str, variant: str) -> None:
    pytest.importorskip("flash_attn")
    if gpu != "cuda":
        pytest.skip("flash_attn has kernels for GPUs only")
    check(on(gpu, make_trained("llama", variant)), "flash_attention_2", PACKED)
