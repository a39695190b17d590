"""Settings of methods that do not go together are refused, in words."""

from typing import Any

import pytest

from controlllm.common.errors import ConfigError
from controlllm.expansion import ExpansionConfig
from controlllm.train import RunConfig, train
from controlllm.train.config.methods import METHODS, Method
from controlllm.train.setup.methods import SETUPS, Setup, register_method

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "stack", "expansion": {"divergence": "cosine"}}, "divergence='cosine' does not go"),
    ({"method": "stack", "expansion": {"structure": "hybrid"}}, "structure='hybrid' does not go"),
    ({"method": "stack", "expansion": {"interpolator": "dlerp"}}, "interpolator='dlerp' does not"),
    ({"method": "stack", "preset": "retain"}, "does not go together with method='stack'"),
    ({"method": "replay"}, "needs old data"),
    ({"method": "kl", "training": {"loss_chunk_size": 8}}, "loss_chunk_size=8 does not go"),
    ({"method": "full", "peft": {"type": "lora"}}, "needs method='lora', or 'control'"),
    ({"method": "lora", "model": {"quantize_base": "int8"}}, "method=control with peft.type"),
    ({"method": "kl", "model": {"quantize_base": "int8"}}, "is not quantised; set method=control"),
    (
        {"method": "lora", "parallel": {"tensor_size": 2}},
        "tensor_size=2 does not go together with method=lora",
    ),
    (
        {"peft": {"type": "oft"}, "parallel": {"tensor_size": 2}},
        "does not go together with peft.type=oft",
    ),
    (
        {"peft": {"type": "dora"}, "model": {"quantize_base": "int8"}},
        "does not go together with peft.type=dora",
    ),
    ({"peft": {"type": "lara"}}, "Did you mean 'lora'"),
    ({"peft": {"r": 0}}, "at least 1"),
    ({"peft": {"dropout": 1.0}}, "below 1"),
    ({"peft": {"layers": []}}, "is empty"),
    ({"freeze": {"num_layers": 0}}, "no block trains"),
    ({"freeze": {"num_layers": 1, "layers": [1]}}, "cannot both be given"),
    ({"kl": {"weight": -1.0}}, "out of range"),
] + [
    (
        {"method": name, "training": {"alpha_sampling": [0.2, 0.8]}},
        "'sidecar' set it, too.* has no alpha",
    )
    for name in ("full", "lora", "freeze", "kl")
]


@pytest.mark.parametrize(("over", "words"), REFUSED, ids=str)
def test_what_does_not_go_together_is_refused(run_config: Any, over: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run_config(**over)


def test_every_method_of_the_config_is_there() -> None:
    assert METHODS.names() == SETUPS.names()


def test_a_method_of_ones_own_trains(run_config: Any, loaded: Any, monkeypatch: Any) -> None:
    for registry in (METHODS, SETUPS):
        monkeypatch.setattr(registry, "_things", dict(registry._things))

    def train_norm(model: Any, run: RunConfig) -> None:
        model.requires_grad_(False)
        model.model.norm.requires_grad_(True)

    register_method("norm_only", Method(trains_base=True), Setup(train_norm))
    result = train(run_config(method="norm_only"), loaded())
    trained = [name for name, p in result.model.named_parameters() if p.requires_grad]
    assert trained == ["model.norm.weight"] and result.stopped_because == "max_steps"


def test_the_default_stack_needs_no_settings() -> None:
    assert RunConfig(method="stack").expansion == ExpansionConfig(
        structure="stack", divergence="none"
    )
