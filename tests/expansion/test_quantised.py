"""Bases that come quantised: copies that train, and sidecars across bases."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.laws.architectures import make_base
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from controlllm import collapse, expand, load_sidecar
from controlllm.common.errors import CheckpointError, ModelError
from controlllm.common.quiet import require_package
from controlllm.expansion.files.fingerprint import fingerprint
from controlllm.expansion.surgery.quantised import (
    full_weight,
    quantised_kind,
    quantised_layers,
    settle,
)

pytest.importorskip("bitsandbytes")
WIDE = {"hidden_size": 64, "intermediate_size": 128}
"""Rows of whole blocks: others bitsandbytes gets wrong on CPUs."""
IDS = torch.arange(48).view(2, 24)


def by_torchao() -> TorchAoConfig:
    torchao = require_package("torchao.quantization", "a test")
    return TorchAoConfig(torchao.Int8WeightOnlyConfig())


CONFIGS = {
    "bnb_int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bnb_nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bnb_nf4_double": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "bnb_fp4": lambda: BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_storage=torch.float32,  # codes in a floating type
    ),
    "torchao Int8Tensor": by_torchao,
}
START = {"bnb_int8": 2e-2, "torchao Int8Tensor": 1e-6}
"""How far outputs move when the base is expanded, relative; 0 for all others.

LLM.int8 rounds what comes in to 8 bits when it is evaluated; a copy in full does not.
"""


@pytest.fixture
def folder(pico_llama: Any, tmp_path: Path) -> Path:
    pico_llama(**WIDE).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def quantised(folder: Path, kind: str, **settings: Any) -> Any:
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=CONFIGS[kind](), **{"dtype": torch.float32, **settings}
    )
    settle(base)  # bitsandbytes evaluates no matrices as small as these on some CPUs
    return base


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def disturb(model: Any) -> None:
    """Else both branches are the same."""
    random = torch.Generator().manual_seed(1)
    for block in model.blocks.values():
        for parameter in block.expanded.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_starts_as_the_quantised_base_trains_and_gives_it_back(folder: Path, kind: str) -> None:
    base = quantised(folder, kind)
    before, full = logits(base), AutoModelForCausalLM.from_pretrained(folder)
    numbers = {name: full_weight(layer) for name, layer in quantised_layers(base)}
    assert len(numbers) == 4 * 7
    assert not torch.allclose(before, logits(full), rtol=1e-3)
    model = expand(base, num_blocks=2)
    moved = (logits(model) - before).norm() / before.norm()
    assert moved <= START.get(kind, 0.0)
    assert {quantised_kind(layer) for _, layer in quantised_layers(model)} == {kind}
    assert model.config.base["quantised"] == [kind]
    assert model.config.base["num_parameters"] == sum(p.numel() for p in full.parameters())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert not list(quantised_layers(model.blocks[3].expanded))

    model.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.5
    model.eval().set_alpha(0.0)
    assert torch.equal(logits(model), before)
    again = model.unload()
    assert torch.equal(logits(again), before)
    for name, layer in quantised_layers(again):
        assert torch.equal(full_weight(layer), numbers[name])


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_copy_has_the_numbers_that_the_base_computes_with(folder: Path, kind: str) -> None:
    base = quantised(folder, kind)
    full = AutoModelForCausalLM.from_pretrained(folder)
    model = expand(base, num_blocks=2)
    names = [name for name, _ in quantised_layers(model.blocks[3].pretrained)]
    assert len(names) == 7
    for name in names:
        layer = model.blocks[3].pretrained.get_submodule(name).train()
        copied = model.blocks[3].expanded.get_submodule(name)
        assert type(copied) is nn.Linear
        x = torch.randn(5, copied.in_features, generator=torch.Generator().manual_seed(0))
        # In training all of these multiply with the numbers that they stand for.
        torch.testing.assert_close(layer(x), copied(x), rtol=1e-4, atol=1e-5)
        exact = full.model.layers[3].get_submodule(name).weight
        error = (copied.weight - exact).norm() / exact.norm()
        assert error < {"bnb_fp4": 0.15}.get(kind, 0.12 if "4" in kind else 0.01)


def test_copies_take_the_float_type_of_what_is_not_quantised(folder: Path) -> None:
    model = expand(quantised(folder, "bnb_nf4", dtype=torch.bfloat16), num_blocks=2)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}


def test_transposed_layers_come_back_transposed(tmp_path: Path) -> None:
    make_base("gpt2").save_pretrained(tmp_path / "base")
    base, full = quantised(tmp_path / "base", "bnb_int8"), make_base("gpt2")
    before = logits(base)
    model, plain = expand(base, num_blocks=2), expand(full, num_blocks=2)
    assert (logits(model) - before).norm() / before.norm() < START["bnb_int8"]
    shapes = [
        {n: p.shape for n, p in m.named_parameters() if p.requires_grad} for m in (model, plain)
    ]
    assert shapes[0] == shapes[1]
    model.save_sidecar(tmp_path / "sidecar")
    load_sidecar(make_base("gpt2"), tmp_path / "sidecar")


@pytest.mark.parametrize("kind", CONFIGS)
def test_sidecars_go_from_quantised_to_full_and_back(
    folder: Path, kind: str, tmp_path: Path
) -> None:
    """The fingerprint of both is that of the files; what each computes is its own."""
    full = AutoModelForCausalLM.from_pretrained(folder)
    assert fingerprint(quantised(folder, kind)) == fingerprint(full)
    beside, plain = expand(quantised(folder, kind), num_blocks=2), expand(full, num_blocks=2)
    for one, name in ((beside, "quantised"), (plain, "full")):
        disturb(one)
        one.save_sidecar(tmp_path / name)
    onto_full = load_sidecar(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "quantised")
    onto_quantised = load_sidecar(quantised(folder, kind), tmp_path / "full")
    assert onto_full.config.base["quantised"] == [kind]
    limit = {"bnb_fp4": 1.0}.get(kind, 0.7 if "4" in kind else 0.1)
    for one, other in ((onto_full, beside), (onto_quantised, plain)):
        error = (logits(one) - logits(other)).norm() / logits(other).norm()
        assert 0 < error < limit
    again = load_sidecar(quantised(folder, kind), tmp_path / "quantised")
    assert torch.equal(logits(again), logits(beside))


def test_another_base_is_refused_quantised_or_not(
    folder: Path, pico_llama: Any, tmp_path: Path
) -> None:
    expand(AutoModelForCausalLM.from_pretrained(folder), num_blocks=2).save_sidecar(tmp_path / "s")
    pico_llama(seed=1, **WIDE).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="was trained on"):
        load_sidecar(quantised(tmp_path / "other", "bnb_nf4"), tmp_path / "s")
    # The files are no longer those that it was loaded from: its own numbers are all that is known.
    base = quantised(folder, "bnb_nf4")
    pico_llama(seed=1, **WIDE).save_pretrained(folder)
    assert fingerprint(base).startswith("bnb_nf4:")
    with pytest.raises(CheckpointError, match=r"bnb_nf4:.*known only as it was quantised"):
        load_sidecar(base, tmp_path / "s")


@pytest.mark.parametrize("kind", ["bnb_int8", "bnb_nf4"])
def test_a_base_saved_quantised_is_known_by_its_own_numbers(
    folder: Path, kind: str, tmp_path: Path
) -> None:
    quantised(folder, kind).save_pretrained(tmp_path / "saved")

    def load() -> Any:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        settle(base)
        return base

    model = expand(load(), num_blocks=2)
    assert torch.equal(logits(load()), logits(quantised(folder, kind)))
    model.save_sidecar(tmp_path / "sidecar")
    assert model.config.base["fingerprint"].startswith(f"{kind}:")
    assert torch.equal(logits(load_sidecar(load(), tmp_path / "sidecar")), logits(model))
    with pytest.raises(CheckpointError, match="known only as it was quantised"):
        load_sidecar(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "sidecar")


@pytest.mark.parametrize("kind", ["bnb_nf4", "torchao Int8Tensor"])
def test_what_cannot_work_is_refused_before_anything_changes(
    folder: Path, kind: str, tmp_path: Path
) -> None:
    base = quantised(folder, kind)
    before = logits(base)
    with pytest.raises(ModelError, match=r"lets blocks of the base train.*quantised"):
        expand(base, num_blocks=2, freeze=["norm"])
    assert torch.equal(logits(base), before) and base.config.num_hidden_layers == 4
    model = expand(base, num_blocks=2)
    with pytest.raises(ModelError, match="save the sidecar"):
        model.save_pretrained(tmp_path / "full")
    with pytest.raises(ModelError, match=r"quantised.*cannot be interpolated"):
        collapse(model)


def test_a_quantised_head_is_not_expanded(folder: Path) -> None:
    settings = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["nothing"])
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings)
    if not list(quantised_layers(base.lm_head)):
        pytest.fail("the head was to be quantised")
    with pytest.raises(ModelError, match=r"head is quantised.*llm_int8_skip_modules"):
        expand(base, num_blocks=2, expand_ends=True)


def test_other_packed_weights_are_refused(pico_llama: Any) -> None:
    base = pico_llama()
    packed = torch.zeros(48, 32, dtype=torch.uint8)
    base.model.layers[3].mlp.up_proj.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(
        ModelError, match=r"3.mlp.up_proj.weight is torch.uint8.*BitsAndBytesConfig"
    ):
        expand(base, num_blocks=2)


def test_an_evaluation_does_not_lay_weights_out_anew(pico_llama: Any, tmp_path: Path) -> None:
    """On a CPU with AVX512-BF16 bitsandbytes would, and gradients would be lost."""
    folder = tmp_path / "base"
    pico_llama(hidden_size=64, intermediate_size=64).save_pretrained(folder)
    base = quantised(folder, "bnb_nf4").eval().requires_grad_(False)
    layer = base.model.layers[0].self_attn.q_proj
    codes, exact = layer.weight.clone(), full_weight(layer)
    layer.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        layer(torch.ones(1, 64))
    assert layer.weight.shape != codes.shape  # It was laid out anew before it was expanded.
    model = expand(base, num_blocks=2).eval()
    assert torch.equal(layer.weight, codes)
    torch.testing.assert_close(full_weight(layer), exact, rtol=0.01, atol=1e-3)
    shape = layer.weight.shape
    logits(model)
    assert layer.weight.shape == shape
    x = torch.ones(1, 64, requires_grad=True)
    layer.train()(x).sum().backward()
    torch.testing.assert_close(x.grad, exact.sum(0, keepdim=True), rtol=0.02, atol=1e-2)


def test_rows_that_a_cpu_gets_wrong_are_refused(pico_llama: Any, tmp_path: Path) -> None:
    pico_llama(intermediate_size=48).save_pretrained(tmp_path)
    settings = CONFIGS["bnb_nf4"]()
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings)
    try:
        model = expand(base, num_blocks=2)
    except ModelError as error:
        assert re.search(r"4-bit rows of (32|48) weights wrongly on this CPU", str(error))
        return
    # Not every CPU's kernel is wrong: then what it computes is what the weights in full compute.
    ids = torch.arange(12)[None]
    full = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings)
    torch.testing.assert_close(
        model.eval()(input_ids=ids).logits,
        full.dequantize().eval()(input_ids=ids).logits,
        atol=1e-4,
        rtol=1e-4,
    )
