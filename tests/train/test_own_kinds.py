"""An optimizer and a way to quantise of one's own join by registering, and train."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from controlllm.common.errors import ConfigError
from controlllm.common.packages.quantizers import QUANTIZERS, Quantizer
from controlllm.expansion import ExpansionConfig, expand, quantised_layers
from controlllm.train import RunConfig, train
from controlllm.train.config.optimizers import OPTIMIZERS, Optimizer
from controlllm.train.parallel.mesh import MeshPlan
from controlllm.train.plan.estimate import estimate
from controlllm.train.setup.quantised_linear import PACKERS, Packer, register_quantizer
from controlllm.train.setup.quantize import quantize_base
from controlllm.train.step.optim import MAKERS, register_optimizer


@pytest.fixture
def sgd() -> Iterator[str]:
    """The name of an optimizer with one moment."""
    register_optimizer(
        "sgd",
        Optimizer(moments=1),
        lambda groups, betas, eps: torch.optim.SGD(groups, momentum=betas[0]),
    )
    yield "sgd"
    for registry in (OPTIMIZERS, MAKERS):
        registry._things.pop("sgd")


@pytest.fixture
def half() -> Iterator[str]:
    """The name of a way to keep weights in 16 bits."""
    register_quantizer(
        "half",
        Quantizer(
            shape=lambda rows, columns: (rows, 2 * columns),
            bytes=lambda rows, columns: 2 * rows * columns,
            shares=lambda strategy: not strategy.by_deepspeed,
            require=lambda setting: None,
        ),
        Packer(
            pack=lambda weight: (weight.half().view(torch.uint8), None),
            unpack=lambda packed, table, columns: packed.view(torch.float16).float(),
        ),
    )
    yield "half"
    for registry in (QUANTIZERS, PACKERS):
        registry._things.pop("half")


def test_an_optimizer_of_ones_own_trains(sgd: str, run_config: Any, loaded: Any) -> None:
    run = run_config(training={"optim": sgd, "max_steps": 2, "learning_rate": 0.1})
    plans = {
        name: estimate(
            run_config(training={"optim": name}),
            loaded()[0].config,
            ExpansionConfig(num_blocks=2),
            MeshPlan(1, 1),
        ).memory
        for name in (sgd, "adamw")
    }
    assert plans[sgd].optimizer < 0.6 * plans["adamw"].optimizer
    history = train(run, loaded()).history
    assert [row["step"] for row in history if "train/loss" in row][-1] == 2
    with pytest.raises(ConfigError, match="registered already"):
        register_optimizer(sgd, Optimizer(), MAKERS.get("adamw"))


def test_a_way_to_quantise_of_ones_own_is_used_and_checked(half: str, pico_llama: Any) -> None:
    model = expand(pico_llama(), ExpansionConfig(num_blocks=2)).eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        quantize_base(model, half)
        assert len(list(quantised_layers(model))) == 4 * 7
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-2, atol=1e-2)
    RunConfig.from_dict({"model": {"quantize_base": half}})
    with pytest.raises(ConfigError, match=r"quantize_base=half does not go together with .*zero2"):
        RunConfig.from_dict(
            {
                "model": {"quantize_base": half},
                "parallel": {"strategy": "zero2"},
                "training": {"backend": "hf"},
            }
        )
