"""Copies in 8 bits: what they compute, on which bases, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from controlllm import collapse, expand
from controlllm.checkpoint import LoadOptions, load_model
from controlllm.cli.calibrate import CalibrateOptions
from controlllm.cli.combine import CombineOptions
from controlllm.cli.export import ExportOptions
from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.losses import next_token_kl
from controlllm.expansion.surgery.int8_copies import Int8Linear, quantize_copies
from controlllm.expansion.surgery.quantised import quantised_kind
from controlllm.train import RunConfig

IDS = torch.arange(3, 43).view(2, 20)
INT8 = LoadOptions(quantize_copies="int8")


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids).logits


def sidecar_on(base: Any, tokenizer: Any, folder: Path) -> Path:
    """A sidecar whose copies have moved, on its base in `folder / "base"`."""
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = expand(type(base).from_pretrained(folder / "base"), num_blocks=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in model.blocks.values():
            for parameter in block.expanded.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.2 * parameter.std() * noise if parameter.dim() > 1 else 0
    model.save_sidecar(folder / "sidecar")
    return folder / "sidecar"


@pytest.fixture
def sidecar(tmp_path: Path, pico_llama: Callable[..., Any], pico_tokenizer: Any) -> Path:
    base = pico_llama(hidden_size=64, intermediate_size=128)  # rows that bitsandbytes can pack
    return sidecar_on(base, pico_tokenizer, tmp_path)


def test_codes_and_scales_by_hand() -> None:
    linear = nn.Linear(2, 3, bias=False)
    linear.weight.data = torch.tensor([[1.27, -0.5], [0.0, 0.0], [-254.0, 1.9]])
    made = Int8Linear(linear)
    assert made.weight.tolist() == [[127, -50], [0, 0], [-127, 1]]
    exact = torch.tensor([[1.27, -0.5], [0.0, 0.0], [-254.0, 2.0]])
    torch.testing.assert_close(made.dequantised(), exact)
    assert quantised_kind(made) == "int8"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens, width", [(1, 172), (1, 160), (5, 96), (40, 160)])
@torch.no_grad()
def test_a_layer_computes_what_its_weights_say(dtype: torch.dtype, tokens: int, width: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(width, 67).to(dtype)
    made, x = Int8Linear(linear), torch.randn(2, tokens, width, dtype=dtype)
    exact = F.linear(x.float(), made.dequantised(), linear.bias.float())
    few = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(made(x).float(), exact, rtol=few, atol=few)
    torch.testing.assert_close(linear(x).float(), exact, rtol=few, atol=3e-2)
    assert made(x).dtype is dtype


def test_gradients_flow_through_a_layer() -> None:
    linear = nn.Linear(8, 4).bfloat16()
    x = torch.ones(1, 8, dtype=torch.bfloat16, requires_grad=True)
    Int8Linear(linear)(x).sum().backward()
    torch.testing.assert_close(x.grad, linear.weight.sum(0, keepdim=True), rtol=2e-2, atol=2e-2)


def test_a_sidecar_is_loaded_with_copies_in_8_bits(sidecar: Path) -> None:
    full, _ = load_model(sidecar)
    model, _ = load_model(sidecar, INT8)
    for layer, block in model.blocks.items():
        assert isinstance(block.expanded.mlp.down_proj, Int8Linear)
        assert type(block.pretrained.mlp.down_proj) is nn.Linear
        assert block.expanded.mlp.down_proj.weight.nbytes * 4 == (
            full.blocks[layer].expanded.mlp.down_proj.weight.nbytes
        )
    away = next_token_kl(logits(full), logits(model)).mean()
    learned = next_token_kl(logits(full), logits_at(full, 0.0)).mean()
    assert 0 < away < 0.01 * learned
    for one in (model, full):
        one.set_alpha(0.0)
    assert torch.equal(logits(model), logits(full))
    assert model.generate(IDS[:1], max_new_tokens=3, do_sample=False).shape == (1, 23)


def logits_at(model: Any, alpha: float) -> torch.Tensor:
    """The logits at one alpha; the dial stands where it stood afterwards."""
    model.set_alpha(alpha)
    seen = logits(model)
    model.set_alpha(None)
    return seen


def test_beside_a_base_in_few_bits(sidecar: Path) -> None:
    pytest.importorskip("bitsandbytes")
    on_full, _ = load_model(sidecar, LoadOptions(quantize_base="bnb_int8"))
    model, _ = load_model(sidecar, LoadOptions(quantize_base="bnb_int8", quantize_copies="int8"))
    block = next(iter(model.blocks.values()))
    assert quantised_kind(block.pretrained.mlp.up_proj) == "bnb_int8"
    assert quantised_kind(block.expanded.mlp.up_proj) == "int8"
    assert 0 < next_token_kl(logits(on_full), logits(model)).mean() < 0.01


def test_they_neither_train_nor_are_saved(sidecar: Path, tmp_path: Path) -> None:
    model, _ = load_model(sidecar, INT8)
    refusals: list[tuple[Callable[[], Any], str]] = [
        (model.train, "inference only"),
        (lambda: model.save_sidecar(tmp_path / "a"), "not saved: load it without quantize_copies"),
        (lambda: model.save_pretrained(tmp_path / "b"), "is quantised and cannot be saved"),
        (lambda: collapse(model), "quantised"),
    ]
    for call, message in refusals:
        with pytest.raises(ModelError, match=message):
            call()
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_where_it_cannot_be_followed_it_is_refused(sidecar: Path) -> None:
    with pytest.raises(ConfigError, match="no copy has a linear layer"):
        load_model(sidecar.parent / "base", INT8)
    with pytest.raises(ConfigError, match="allowed: int8"):
        quantize_copies(nn.Linear(2, 2), "int3")
    with pytest.raises(ConfigError, match="copies train in full"):
        RunConfig.from_dict({"model": {"quantize_copies": "int8"}})
    for make in (
        lambda: CalibrateOptions("run", load=INT8),
        lambda: CombineOptions("a", "b", "c", load=INT8),
        lambda: ExportOptions("run", "folder", load=INT8),
    ):
        with pytest.raises(ConfigError, match="for inference only"):
            make()


def test_a_real_model_says_nearly_the_same(stories260k: Path, tmp_path: Path) -> None:
    base, tokenizer = load_model(stories260k)
    folder = sidecar_on(base, tokenizer, tmp_path)
    ids = tokenizer("Once upon a time there was a little girl", return_tensors="pt").input_ids
    seen = [logits(load_model(folder, options)[0], ids) for options in (None, INT8)]
    assert 0 < next_token_kl(*seen).mean() < 2e-3
