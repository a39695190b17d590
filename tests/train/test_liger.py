"""What is refused before Liger's kernels are asked for; none of it needs the package."""

import sys
from typing import Any

import pytest
import torch
from tests.laws.architectures import make_base

from controlllm.common.errors import ConfigError, ModelError
from controlllm.train import RunConfig, train
from controlllm.train.config.training_config import TrainingConfig
from controlllm.train.parallel.mesh import MeshPlan
from controlllm.train.plan.estimate import estimate
from controlllm.train.step import liger
from controlllm.train.step.liger import apply_liger_kernels, fused_chunk, require_liger

GPU = torch.device("cuda")


def test_all_kernels_are_on_but_those_turned_off() -> None:
    assert TrainingConfig().liger_kernels == ()
    every = ("rms_norm", "swiglu", "rope", "fused_linear_cross_entropy")
    assert TrainingConfig(use_liger_kernel=True).liger_kernels == every
    some = {"rope": False, "swiglu": True}
    run = RunConfig.from_dict({"training": {"use_liger_kernel": True, "liger_kernel_config": some}})
    kept = ("rms_norm", "swiglu", "fused_linear_cross_entropy")
    assert run.training.liger_kernels == kept
    assert RunConfig.from_dict(run.to_dict()) == run


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"training": {"liger_kernel_config": {"rop": False}}}, "rope"),
    ({"training": {"liger_kernel_config": {"rope": False}}}, "use_liger_kernel=true"),
    ({"training": {"use_liger_kernel": True, "torch_compile": True}}, "torch_compile"),
    ({"training": {"use_liger_kernel": True, "loss_chunk_size": 8}}, "loss_chunk_size=8"),
    ({"training": {"use_liger_kernel": True}, "parallel": {"tensor_size": 2}}, "tensor_size=2"),
    (
        {
            "training": {"use_liger_kernel": True, "backend": "hf"},
            "parallel": {"strategy": "zero3"},
        },
        "ZeRO-3 cuts",
    ),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_settings_that_do_not_go_together_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunConfig.from_dict(settings)


def test_chunks_of_ours_go_with_the_other_kernels() -> None:
    off = {"fused_linear_cross_entropy": False}
    TrainingConfig(use_liger_kernel=True, liger_kernel_config=off, loss_chunk_size=8)


def test_a_cpu_is_refused_before_anything_is_loaded(
    run_config: Any, loaded: Any, monkeypatch: Any
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    run = run_config(model={"device": "cpu"}, training={"use_liger_kernel": True})
    with pytest.raises(ConfigError, match="needs a GPU, and the run is on cpu"):
        train(run, loaded())


@pytest.mark.parametrize("missing", ["liger_kernel", "triton"])
def test_an_absent_package_is_asked_for_by_its_extra(monkeypatch: Any, missing: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "liger_kernel"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"pip install 'controlllm\[liger\]'"):
        require_liger(GPU)


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox"])
def test_an_architecture_without_such_parts_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="does not support model_type"):
        apply_liger_kernels(make_base(name), TrainingConfig(use_liger_kernel=True))


def only(kernel: str) -> TrainingConfig:
    names = ("rms_norm", "swiglu", "rope", "fused_linear_cross_entropy")
    config: Any = {name: name == kernel for name in names}
    return TrainingConfig(use_liger_kernel=True, liger_kernel_config=config)


@pytest.mark.parametrize(("name", "changed"), [("gemma2", {}), ("llama", {"hidden_act": "gelu"})])
def test_a_kernel_without_use_is_refused_where_it_is_named(name: str, changed: Any) -> None:
    with pytest.raises(ConfigError, match="turns on 'swiglu'"):
        apply_liger_kernels(make_base(name, **changed), only("swiglu"))


def test_a_forward_that_somebody_else_replaced_is_refused() -> None:
    base = make_base("llama")
    base.model.layers[0].mlp.forward = lambda x: x
    with pytest.raises(ConfigError, match="the forward of a LlamaMLP was replaced already"):
        apply_liger_kernels(base, only("swiglu"))


def test_attention_that_rotates_otherwise_is_refused() -> None:
    def forward(self: Any, x: Any) -> Any:
        return x

    with pytest.raises(ModelError, match="calls no apply_rotary_pos_emb"):
        liger._with_rotary_kernel(forward)


def test_modules_bound_where_no_kernel_can_run_compute_as_before(monkeypatch: Any) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    base = make_base("llama")
    ids = torch.tensor([[1, 2, 3]])
    before = base(ids).logits
    assert apply_liger_kernels(base, only("swiglu")) == {"swiglu": 4}
    assert torch.equal(base(ids).logits, before)


def test_chunks_of_the_fused_loss_are_as_large_as_its_input() -> None:
    assert fused_chunk(5, vocabulary=8, width=16) == 5
    assert fused_chunk(8192, vocabulary=32_000, width=4096) == 1024


def test_a_plan_counts_the_logits_of_a_chunk(run_config: Any, pico_llama: Any) -> None:
    config = pico_llama().config
    planned = []
    for use in (False, True):
        run = run_config(training={"use_liger_kernel": use})
        memory = estimate(run, config, run.expansion, MeshPlan(1, 1)).memory
        planned.append(memory.logits)
    assert planned[1] * 64 == planned[0] * fused_chunk(64, config.vocab_size, config.hidden_size)
    assert planned[1] * 8 == planned[0]
