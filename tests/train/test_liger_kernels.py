"""Liger's real kernels against the plain model.

They need liger-kernel and triton, and a GPU or Triton's interpreter, which must be asked for before
triton is imported: `TRITON_INTERPRET=1 pytest tests/train/test_liger_kernels.py`.
"""

import copy
import os
from typing import Any

import pytest
import torch
from tests.laws.architectures import VOCAB, make_base
from tests.train.helpers import losses_of

from controlllm.common.errors import ModelError
from controlllm.common.losses import cross_entropy_sum
from controlllm.expansion import expand
from controlllm.expansion.method.block import ExpandedBlock
from controlllm.train import train
from controlllm.train.config.training_config import TrainingConfig
from controlllm.train.setup.activations import enable_checkpointing
from controlllm.train.setup.quantize import quantize_base
from controlllm.train.step.head import hidden_states_of
from controlllm.train.step.liger import (
    apply_liger_kernels,
    check_liger_kernels,
    fused_chunk,
    fused_cross_entropy_sum,
    without_liger_kernels,
)

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.bfloat16 if CUDA else torch.float16  # the interpreter cannot multiply bfloat16
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(
        not (CUDA or INTERPRETED), reason="needs a GPU, or TRITON_INTERPRET=1 from the start"
    ),
    *([] if INTERPRETED else [pytest.mark.gpu]),
]

ALL = TrainingConfig(use_liger_kernel=True)
FAMILIES = {
    "llama": {"num_blocks": 2},
    "llama-tied": {"num_blocks": 2, "expand_ends": True, "train_alpha": True},
    "mistral": {"num_blocks": 2, "interpolator": "slerp"},
    "qwen2-windowed": {"num_blocks": 2, "structure": "stack"},
    "qwen3": {"num_blocks": 2, "divergence": "cosine", "interpolator": "dlerp"},
    "phi3": {"num_blocks": 2, "relaxed_norm": 0.02},
    "olmo2": {"num_blocks": 2, "expand_ends": True},
    "gemma2": {"num_blocks": 2, "expand_ends": True},
    "gemma3": {"num_blocks": 2},
    "mixtral": {"num_blocks": 2},
    "qwen3-moe": {"num_blocks": 2},
}


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Any:
    """Liger's operations. The interpreter (triton 3.9) gets what the compiler does by itself."""
    liger = pytest.importorskip("liger_kernel.ops")
    if CUDA:
        yield liger
        return
    import numpy
    import triton.language as tl
    from liger_kernel.ops import rms_norm
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def with_floats(value: Any) -> Any:
        if isinstance(value, float):
            handle = interpreter.TensorHandle(numpy.array([value], numpy.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return convert(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_implicit_cvt", with_floats)
        patch.setattr(rms_norm, "rsqrt", lambda x: tl.math.rsqrt(x))  # not libdevice's
        yield liger


def make_model(name: str, expansion: dict[str, Any] | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = expand(make_base(name, **settings), **(expansion or FAMILIES[name]))
    with torch.no_grad():  # the branches differ, so that neither divergence nor merge is trivial
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(DEVICE).train()


def batch() -> dict[str, Any]:
    torch.manual_seed(1)
    ids = torch.randint(0, VOCAB, (2, 11), device=DEVICE)
    return {"input_ids": ids, "use_cache": False}


def step(model: Any) -> tuple[Any, Any, dict[int, Any], dict[str, Any]]:
    """Loss, logits, divergences and gradients of one pass."""
    inputs = batch()
    model.zero_grad()
    with model.explicit_divergence() as terms:
        logits = model(**inputs).logits
    mask = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    loss = cross_entropy_sum(logits, inputs["input_ids"])[0]
    if terms.values:
        loss = loss + terms.total(mask)[0]
    loss.backward()
    blocks = {layer: total for layer, (total, _) in terms.per_block(mask).items()}
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), logits.detach(), blocks, gradients


def assert_same(ours: Any, plain: Any, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    torch.testing.assert_close(ours[0], plain[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(ours[1], plain[1], rtol=rtol, atol=atol)
    assert ours[2].keys() == plain[2].keys()
    for layer, value in plain[2].items():
        torch.testing.assert_close(ours[2][layer], value, rtol=rtol, atol=atol)
    assert ours[3].keys() == plain[3].keys()
    for name, gradient in plain[3].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(ours[3][name], gradient, rtol=rtol, atol=atol * max(scale, 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_gradients_and_divergences_are_the_plain_models(name: str) -> None:
    model = make_model(name)
    keys = list(model.state_dict())
    plain = step(model)
    counts = apply_liger_kernels(model, ALL)
    blocks = 4 + len(model.blocks)
    assert counts["rope"] == blocks
    assert counts["rms_norm"] >= 2 * blocks + 1
    assert counts["swiglu"] == (
        0 if name.startswith(("gemma", "mixtral")) or "moe" in name else blocks
    )
    ours = step(model)
    assert_same(ours, plain)
    assert not torch.equal(ours[1], plain[1])  # else no kernel ran
    with without_liger_kernels(model):
        assert torch.equal(step(model)[1], plain[1])
    assert list(model.state_dict()) == keys


def test_each_kernel_reaches_both_branches_and_both_ends_of_its_model_only() -> None:
    model, other = make_model("llama-tied"), make_model("llama-tied")
    others = step(other)
    before = [type(m).forward for m in other.modules()]
    apply_liger_kernels(model, ALL)
    bound = {name for name, module in model.named_modules() if "forward" in vars(module)}
    for layer, block in enumerate(model.model.layers):
        branches = ("pretrained.", "expanded.") if isinstance(block, ExpandedBlock) else ("",)
        for branch in branches:
            for part in ("input_layernorm", "post_attention_layernorm", "mlp", "self_attn"):
                assert f"base.model.layers.{layer}.{branch}{part}" in bound
    assert {"base.model.norm.pretrained", "base.model.norm.expanded"} <= bound
    assert [type(m).forward for m in other.modules()] == before
    assert not any("forward" in vars(module) for module in other.modules())
    assert torch.equal(step(other)[1], others[1])


def test_attention_maps_and_their_divergence_are_kept() -> None:
    expansion = {"num_blocks": 2, "divergence": "attention"}
    model = make_model("llama", expansion, attn_implementation="eager")
    plain, maps = step(model), model(**batch(), output_attentions=True).attentions
    apply_liger_kernels(model, ALL)
    assert_same(step(model), plain)
    ours = model(**batch(), output_attentions=True).attentions
    assert len(ours) == len(maps)
    torch.testing.assert_close(ours, maps, rtol=1e-4, atol=1e-5)


def test_a_quantised_base_computes_by_kernels_too() -> None:
    pytest.importorskip("torchao")
    model = make_model("llama")
    quantize_base(model, "nf4")
    plain = step(model)
    apply_liger_kernels(model, ALL)
    assert_same(step(model), plain)


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_activations_computed_again_are_the_same(policy: str) -> None:
    model = make_model("llama")  # nothing between its projections, whose results are kept, and RoPE
    plain = step(model)
    apply_liger_kernels(model, ALL)
    training = TrainingConfig(gradient_checkpointing=True, gradient_checkpointing_policy=policy)
    enable_checkpointing(model, training)
    assert_same(step(model), plain)


@pytest.mark.parametrize("name", ["llama", "olmo2", "gemma2"])
def test_a_norm_rounds_where_transformers_does(name: str) -> None:
    base = make_base(name).to(DEVICE, HALF)
    apply_liger_kernels(base, ALL)
    norm = base.model.norm
    x = torch.randn(64, 32, dtype=HALF, device=DEVICE)
    ours = norm(x)
    with without_liger_kernels(base):
        plain = norm(x)
    assert ours.dtype == plain.dtype
    assert (ours != plain).float().mean() < 0.02  # at a tie of float32 sums


def test_a_norm_of_many_short_rows_is_the_plain_norm() -> None:
    """Queries and keys of a real batch: Liger takes another kernel for them."""
    base = make_base("qwen3").to(DEVICE)
    norm = base.model.layers[0].self_attn.q_norm
    results = []
    torch.manual_seed(0)
    inputs = torch.randn(2, 4096, 4, 8, device=DEVICE)
    slope = torch.randn_like(inputs)
    for use in (False, True):
        if use:
            apply_liger_kernels(base, ALL)
        x = inputs.clone().requires_grad_()
        norm.weight.grad = None
        y = norm(x)
        y.backward(slope)
        results.append((y.detach(), x.grad, norm.weight.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def test_autocast_gives_the_same_up_to_rounding() -> None:
    model = make_model("llama")
    with torch.autocast(DEVICE, HALF):
        plain = step(model)
        apply_liger_kernels(model, ALL)
        ours = step(model)
    torch.testing.assert_close(ours[0], plain[0], rtol=0.02, atol=0)
    for name, gradient in plain[3].items():
        error = (ours[3][name].float() - gradient.float()).norm() / gradient.float().norm()
        assert error < 0.05, name


def test_the_dial_the_disabled_base_generation_and_copies_go_on() -> None:
    model = make_model("llama").eval()
    ids = batch()["input_ids"]
    base = make_base("llama").to(DEVICE)
    apply_liger_kernels(model, ALL)
    with torch.no_grad(), model.disable_expansion():
        torch.testing.assert_close(model(ids).logits, base(ids).logits, rtol=1e-4, atol=1e-4)
    arguments = {"max_new_tokens": 4, "do_sample": False}
    made = model.generate(ids, **arguments)
    with without_liger_kernels(model):
        assert torch.equal(model.generate(ids, **arguments), made)
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if "forward" in vars(module):
            assert vars(module)["forward"].__self__ is module
    unloaded = model.unload()
    torch.testing.assert_close(unloaded(ids).logits, base(ids).logits, rtol=1e-4, atol=1e-4)
    again = expand(unloaded, num_blocks=2)  # copies of blocks compute as the blocks do
    torch.testing.assert_close(again(ids).logits, base(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trains", ["all", "head"])
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_the_fused_loss_is_the_loss(name: str, trains: str) -> None:
    model = make_model(name)
    if trains == "head":
        model.requires_grad_(False)
        model.get_output_embeddings().requires_grad_(True)
    inputs = batch()
    labels = inputs["input_ids"].masked_fill(torch.rand(2, 11, device=DEVICE) < 0.3, -100)
    with model.explicit_divergence():
        expected = cross_entropy_sum(model(**inputs).logits, labels)[0]
        hidden = hidden_states_of(model, inputs)
    expected.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = fused_cross_entropy_sum(hidden, model, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    (loss / 3).backward()
    ours = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == plain.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(3 * ours[key], gradient, rtol=1e-4, atol=1e-4)


def test_a_batch_without_targets_adds_nothing() -> None:
    model, inputs = make_model("llama"), batch()
    labels = torch.full_like(inputs["input_ids"], -100)
    with model.explicit_divergence():
        loss = fused_cross_entropy_sum(hidden_states_of(model, inputs), model, labels)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_fused_chunks_are_as_large_as_ligers(kernels: Any, monkeypatch: Any) -> None:
    from liger_kernel.ops import fused_linear_cross_entropy as fused

    rows = []
    real = fused.liger_cross_entropy_kernel

    class Watched:
        def __getitem__(self, grid: Any) -> Any:
            rows.append(grid[0])
            return real[grid]

    monkeypatch.setattr(fused, "liger_cross_entropy_kernel", Watched())
    hidden, weight = torch.randn(20, 8, device=DEVICE), torch.randn(61, 8, device=DEVICE)
    targets = torch.zeros(20, dtype=torch.long, device=DEVICE)
    fused.fused_linear_cross_entropy_forward(hidden, weight, targets, reduction="sum")
    assert max(rows) == fused_chunk(20, 61, 8)


def test_a_kernel_that_computes_something_else_is_found_before_training() -> None:
    model = make_model("gemma2", final_logit_softcapping=None)
    apply_liger_kernels(model, ALL)
    check_liger_kernels(model, ALL.liger_kernels)
    norm = model.get_decoder().norm
    other = make_model("llama")
    apply_liger_kernels(other, ALL)
    llamas = vars(other.get_decoder().norm)["forward"].__func__
    norm.pretrained.forward = llamas.__get__(norm.pretrained)  # without Gemma's offset
    norm.expanded.forward = llamas.__get__(norm.expanded)
    with pytest.raises(ModelError, match="logits by"):
        check_liger_kernels(model, ALL.liger_kernels)


@pytest.mark.parametrize("backend", ["native", "hf"])
@pytest.mark.parametrize("method", ["control", "full"])
def test_a_run_with_kernels_is_the_same_run(
    run_config: Any, loaded: Any, tmp_path: Any, method: str, backend: str
) -> None:
    results = []
    for use in (False, True):
        training = {
            "use_liger_kernel": use,
            "backend": backend,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 1,
            "output_dir": str(tmp_path / f"{use}"),
        }
        run = run_config(
            model={"device": DEVICE},
            method=method,
            expansion={"num_blocks": 1},
            data={"max_length": 12, "learn": [], "max_eval_samples": 1},
            rehearsal={"num_sequences": 2, "share": 0.5, "length": 8},
            training=training,
        )
        results.append(train(run, loaded()))
    plain, ours = (losses_of(result.history) for result in results)
    assert [row.keys() for row in ours] == [row.keys() for row in plain]
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    model = results[1].model
    assert any("forward" in vars(module) for module in model.modules())
    assert model.state_dict().keys() == results[0].model.state_dict().keys()
