"""A frozen base in 8 or 4 bits: what is quantised, what it computes, and what becomes of a run."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, TorchAoConfig

from controlllm import ExpansionConfig, collapse, expand
from controlllm.checkpoint import load_checkpoint, newest_checkpoint
from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.quiet import require_package
from controlllm.data import eval_batches, read_examples
from controlllm.evaluate import evaluate_losses
from controlllm.expansion import load_sidecar
from controlllm.expansion.files.fingerprint import fingerprint
from controlllm.train import RunConfig, train
from controlllm.train.setup.quantised_linear import QuantisedLinear
from controlllm.train.setup.quantize import quantize_base

pytest.importorskip("torchao")

KINDS = ("int8", "nf4")
ERROR = {"int8": 0.006, "nf4": 0.12}
"""More than the relative error of normal values: 0.4 % and 9 %."""


def torchao():
    return require_package("torchao.quantization", "a test")


def quantised(weight, kind):
    """A layer with this weight, through the whole way."""
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return QuantisedLinear(linear, kind)


@pytest.mark.parametrize("columns", [64, 172, 384])
def test_values_are_those_of_torchao(columns):
    weight = torch.randn(50, columns, generator=torch.Generator().manual_seed(0))
    by_torchao = torchao().Int8Tensor.from_hp(weight, granularity=torchao().PerRow())
    assert torch.equal(quantised(weight, "int8").dequantised(), by_torchao.dequantize())
    found = quantised(weight, "nf4").dequantised()
    assert found.shape == weight.shape
    assert (found - weight).norm() / weight.norm() < ERROR["nf4"]
    if columns % 64 == 0:
        expected = torchao().to_nf4(weight, 64, columns // 64).get_original_weight()
        # torchao quantises the scales to 8 bits, we round them to bfloat16.
        torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-3)


def test_nf4_by_hand():
    """Largest value 2: codes are the nearest of NF4's values times 2; a block of zeros stays 0."""
    weight = torch.zeros(1, 128)
    weight[0, :4] = torch.tensor([2.0, -1.4, 0.6, 0.1])
    layer = quantised(weight, "nf4")
    expected = torch.zeros(1, 128)
    # The neighbours: -0.6962, 0.2461 and 0.3379, 0.0796 and 0.
    expected[0, :4] = 2 * torch.tensor([1.0, -0.6962, 0.3379, 0.0796])
    torch.testing.assert_close(layer.dequantised(), expected)
    assert layer.weight.shape == (1, 128 // 2 + 2 * 2)
    assert layer.weight[0, 0] == (15 << 4) | 1  # 1.0 is the last of 16 values, -0.6962 the second


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8 + 32 / 384), ("nf4", 4 + 16 / 64)])
def test_bits_of_a_weight(kind, bits):
    layer = quantised(torch.randn(50, 384), kind)
    assert layer.weight.nbytes * 8 == bits * 50 * 384


def expanded(pico_llama, kind=None, **config):
    model = expand(pico_llama(), ExpansionConfig(num_blocks=2, **config))
    for block in model.blocks.values():  # Else both branches are the same.
        for parameter in block.expanded.parameters():
            random = torch.Generator().manual_seed(1)
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
    if kind:
        quantize_base(model, kind)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_blocks_are_quantised_and_nothing_else(pico_llama, kind):
    plain = dict(expanded(pico_llama, expand_ends=True).named_parameters())
    model = expanded(pico_llama, kind, expand_ends=True)
    packed = {n for n, p in model.named_parameters() if p.dtype is torch.uint8}
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert len(packed) == 4 * len(kinds)  # every block, of those expanded the frozen branch
    for name, parameter in model.named_parameters():
        assert (name in packed) == (
            "expanded" not in name and name.split(".")[-2] in kinds and name.endswith("weight")
        )
        assert parameter.requires_grad == plain[name].requires_grad
        if name not in packed:
            assert torch.equal(parameter, plain[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_dequantised_weights(pico_llama, kind, checkpointing):
    """The first expanded block lies below quantised ones, which the gradient passes through."""
    model = expanded(pico_llama, kind)
    plain = expanded(pico_llama)
    for name, module in model.named_modules():
        if isinstance(module, QuantisedLinear):
            plain.get_submodule(name).weight.data = module.dequantised()
    ids = torch.arange(48).view(2, 24)
    for one in (model, plain):
        one.train()
        if checkpointing:
            one.gradient_checkpointing_enable()
        one(input_ids=ids, labels=ids).loss.backward()
    checked = 0
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None) == (not ours.requires_grad), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
            checked += ours.grad.abs().sum() > 0
    assert checked >= 2 * 9
    first = min(model.blocks)
    assert first < 3  # So there are frozen blocks above it.


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_0_is_the_quantised_base(pico_llama, kind):
    model, plain = expanded(pico_llama, kind), pico_llama()
    ids = torch.arange(24).view(1, 24)
    model.set_alpha(0.0)
    with torch.no_grad():
        at_zero, exact = model(input_ids=ids).logits, plain(input_ids=ids).logits
        with model.disable_expansion():
            assert torch.equal(model(input_ids=ids).logits, at_zero)
        assert not torch.equal(at_zero, exact)
        error = (at_zero - exact).norm() / exact.norm()
    assert error < {"int8": 0.05, "nf4": 0.7}[kind]


def test_under_autocast_it_computes_in_bfloat16(pico_llama):
    layer = quantised(torch.randn(32, 64), "int8")
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype is torch.bfloat16
    output.sum().backward()
    expected = torch.ones(3, 32) @ layer.dequantised()
    torch.testing.assert_close(x.grad, expected, rtol=0.02, atol=0.05)
    layer.weight = nn.Parameter(layer.weight.float(), requires_grad=False)
    with pytest.raises(ModelError, match=r"cast to torch.float32.*bf16=false"):
        layer(x)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_traced_as_one_graph(kind):
    """By dynamo's `eager` backend, as `training.torch_compile` is tested."""
    layer = quantised(torch.randn(32, 64), kind)
    traced = torch.compile(layer, backend="eager", fullgraph=True)
    inputs = [torch.ones(3, 64, requires_grad=True) for _ in range(2)]
    outputs = [one(x) for one, x in zip((layer, traced), inputs, strict=True)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_a_quantised_base_is_not_saved_collapsed_or_quantised_again(pico_llama, tmp_path):
    model = expanded(pico_llama, "nf4")
    with pytest.raises(ModelError, match=r"cannot be saved: save the sidecar"):
        model.save_pretrained(tmp_path / "full")
    with pytest.raises(ModelError, match=r"quantised.*cannot be interpolated"):
        collapse(model)
    with pytest.raises(ConfigError, match=r"this base is nf4 already"):
        quantize_base(model, "nf4")
    with pytest.raises(ConfigError, match=r"int7.*int8"):
        quantize_base(model, "int7")
    with pytest.raises(ConfigError, match=r"no frozen linear layer"):
        quantize_base(expand(pico_llama(), ExpansionConfig(num_blocks=2, freeze=["norm"])), "nf4")


@pytest.mark.parametrize("kind", KINDS)
def test_a_sidecar_loads_onto_the_base_and_onto_the_quantised_base(pico_llama, kind, tmp_path):
    model = expanded(pico_llama, kind)
    model.save_sidecar(tmp_path / "sidecar")
    ids = torch.arange(24).view(1, 24)
    onto = load_sidecar(pico_llama(), tmp_path / "sidecar")  # Its fingerprint is the base's own.
    assert fingerprint(pico_llama()) == model.config.base["fingerprint"]
    plain = expanded(pico_llama)
    with torch.no_grad():
        assert torch.equal(onto(input_ids=ids).logits, plain(input_ids=ids).logits)
        quantize_base(onto, kind)
        assert torch.equal(onto(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("kind", "over"),
    [
        ("int8", {}),
        ("nf4", {"training": {"bf16": True, "gradient_checkpointing": True}}),
        ("nf4", {"training": {"backend": "hf"}, "expansion": {"structure": "stack"}}),
    ],
)
def test_a_run_learns_resumes_exactly_and_is_loaded_again(kind, over, run_config, loaded, tmp_path):
    def run(folder, **more):
        training = {**over.get("training", {}), "output_dir": str(tmp_path / folder), **more}
        config = run_config(
            **{**over, "training": training}, model={"quantize_base": kind, "device": "cpu"}
        )
        return config, train(config, loaded())

    config, straight = run("straight")
    run("resumed", max_tokens=2 * 4 * 32 - 100)
    assert newest_checkpoint(tmp_path / "resumed").name == "checkpoint-2"
    run("resumed")
    a, b = (load_checkpoint(newest_checkpoint(tmp_path / one)) for one in ("straight", "resumed"))
    assert all(torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())
    assert not any(tensor.dtype is torch.uint8 for tensor in a.tensors.values())
    losses = [row["learn/new/loss"] for row in straight.history if "learn/new/loss" in row]
    assert losses[-1] < losses[0] - 0.1
    if "training" in over and "bf16" in over["training"]:
        return  # A float32 model's losses are others.

    base, tokenizer = loaded()
    model = load_sidecar(base, newest_checkpoint(tmp_path / "straight"))
    learn = config.data.learn[0]
    examples, _ = read_examples(learn, tokenizer, config.data)
    batches = eval_batches(examples, tokenizer, config.data, 8)

    plain = evaluate_losses(model, batches).loss
    quantize_base(model, kind)
    assert evaluate_losses(model, batches).loss == pytest.approx(losses[-1], abs=1e-5)
    assert plain == pytest.approx(losses[-1], abs={"int8": 0.01, "nf4": 0.3}[kind])
    assert plain != pytest.approx(losses[-1], abs=1e-5)


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_a_base_that_torchao_quantised_is_trained_beside(
    backend, pico_llama, pico_tokenizer, run_config, tmp_path
):
    pico_llama().save_pretrained(tmp_path / "base")
    settings = TorchAoConfig(torchao().Int8WeightOnlyConfig())

    def base():
        found = AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=settings
        )
        return found, pico_tokenizer

    result = train(run_config(training={"backend": backend}), base())
    losses = [row["learn/new/loss"] for row in result.history if "learn/new/loss" in row]
    assert losses[-1] < losses[0] - 0.1
    newest = newest_checkpoint(result.output_dir)
    assert load_checkpoint(newest).model["config"]["base"]["quantised"] == ["torchao Int8Tensor"]
    again = load_sidecar(base()[0], newest)
    ids = torch.arange(24).view(1, 24)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, result.model.eval()(input_ids=ids).logits)
    load_sidecar(pico_llama(), newest)  # the same base in full, known by its fingerprint


def test_other_methods_and_names_are_refused():
    with pytest.raises(ConfigError, match=r"quantize_base=nf4 does not .*method=full"):
        RunConfig.from_dict({"method": "full", "model": {"quantize_base": "nf4"}})
    with pytest.raises(ConfigError, match="quantize_base"):
        RunConfig.from_dict({"model": {"quantize_base": "int4"}})
    two = {"parallel": {"tensor_size": 2}}
    with pytest.raises(ConfigError, match=r"tensor_size=2 does not go .*quantize_base=int8"):
        RunConfig.from_dict({"model": {"quantize_base": "int8"}, **two})
    with pytest.raises(ConfigError, match=r"tensor_size=2 does not go .*optim=adamw_4bit"):
        RunConfig.from_dict({"training": {"optim": "adamw_4bit"}, **two})
    assert RunConfig.from_dict(two).parallel.tensor_size == 2
