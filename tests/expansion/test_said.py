import dataclasses

import pytest
import torch

from controlllm import ExpansionConfig, expand, load_sidecar
from controlllm.common.errors import ConfigError, ModelError
from controlllm.expansion.files.adapter_config import AdapterConfig
from controlllm.expansion.hub.peft import add_adapters
from controlllm.expansion.method.unread import (
    RULES,
    check_settings,
    stands_at_zero,
    trains_interpolators,
    without_unread,
)

STACK = {"structure": "stack"}
IN_VAIN = [
    (STACK, {"interpolator": "slerp"}),
    (STACK, {"divergence": "nmse"}),
    (STACK, {"divergence_weight": 2.0}),
    (STACK, {"divergence_tokens": "target"}),
    (STACK, {"detach_pretrained": True}),
    (STACK, {"relaxed_norm": 0.1}),
    (STACK, {"alpha": 0.3}),
    (STACK, {"train_alpha": True}),
    ({"divergence": "none"}, {"divergence_weight": 2.0}),
    ({"divergence": "none"}, {"divergence_tokens": "target"}),
    ({"divergence": "none"}, {"detach_pretrained": True}),
    ({"divergence_weight": 0}, {"detach_pretrained": True}),
    ({"divergence": "none"}, {"interpolator": "proj"}),
    ({"divergence": "attention"}, {"interpolator": "proj"}),
    ({"interpolator": "dlerp"}, {"train_alpha": True}),
    ({"interpolator": "moe"}, {"train_alpha": True}),
    ({}, {"residual_projections": ["o_proj"]}),
]


@pytest.mark.parametrize(("others", "said"), IN_VAIN, ids=str)
def test_what_is_said_in_vain_is_named(others, said):
    check_settings(ExpansionConfig(**others))
    (name,) = said
    config = ExpansionConfig(**others, **said)
    with pytest.raises(ConfigError, match=f"{name}=.* would not be used"):
        check_settings(config)
    check_settings(config, below=said)  # of a preset: nobody said it
    clean = without_unread(config)
    assert clean == without_unread(ExpansionConfig(**others)) and clean == without_unread(clean)


def test_every_rule_is_tried():
    assert {rule.field for rule in RULES} == {name for _, said in IN_VAIN for name in said}
    assert {rule.field for rule in RULES} <= {f.name for f in dataclasses.fields(ExpansionConfig)}


@pytest.mark.parametrize(
    "settings",
    [
        {"structure": "stack", "divergence": "none", "dial": 0.5, "residual_projections": ["o"]},
        {"structure": "stack", "expand_ends": True, "alpha": 0.3, "train_alpha": True},
        {"structure": "hybrid", "interpolator": "slerp", "residual_projections": ["o"]},
        {"interpolator": "dlerp", "expand_ends": True, "train_alpha": True, "alpha": 0.3},
        {"interpolator": "proj", "divergence_weight": "dynamic", "mean_alpha": {1: 0.5}},
    ],
    ids=str,
)
def test_what_is_read_may_be_said(settings):
    check_settings(ExpansionConfig(**settings))


def test_what_expand_takes_a_saved_form_takes(pico_llama, tmp_path):
    model = expand(pico_llama(), num_blocks=2, structure="stack", divergence="none")
    model.set_alpha(0.5)
    model.save_sidecar(tmp_path)  # its config is complete
    assert load_sidecar(pico_llama(), tmp_path).expansion == model.expansion
    with pytest.raises(ConfigError, match=r"alpha=0\.3 would not be used"):
        expand(pico_llama(), structure="stack", alpha=0.3)


def test_which_interpolators_train():
    trains = {
        name: trains_interpolators(ExpansionConfig(interpolator=name))
        for name in ("lerp", "slerp", "dlerp", "dlerpin", "moe", "prog", "proj")
    }
    assert [name for name, does in trains.items() if not does] == ["lerp", "slerp"]
    assert trains_interpolators(ExpansionConfig(train_alpha=True))
    assert not trains_interpolators(ExpansionConfig(structure="stack"))


def test_where_the_copies_have_no_weight(pico_llama):
    for settings in ({"alpha": 0}, {"dial": 0}, {"alpha": 0, "dial": {3: 0.0}}):
        model = expand(pico_llama(), num_blocks=1, **settings).train()
        assert stands_at_zero(model.expansion)
        loss = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
        grads = loss.grad_fn and torch.autograd.grad(
            loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True
        )
        assert all(grad is None or not grad.any() for grad in grads or [])
    for settings in ({"alpha": 0.1}, {"alpha": 0, "dial": 0.5}, {"structure": "stack"}):
        assert not stands_at_zero(ExpansionConfig(**settings))


@pytest.mark.parametrize(
    ("type_", "said"),
    [
        ("oft", {"r": 4}),
        ("oft", {"alpha": 4}),
        ("lora", {"block_size": 8}),
        (None, {"block_size": 8}),
    ],
)
def test_settings_of_another_kind_of_adapters_are_refused(type_, said):
    with pytest.raises(ConfigError, match=r"peft\.\w+=\d+ would not be used"):
        AdapterConfig(type=type_, **said)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze": ["blocks", "norm", "embeddings"]}, "freezes one of embeddings and head"),
        ({"freeze": ["blocks", "norm", "head"]}, "freezes one of embeddings and head"),
    ],
)
def test_one_of_two_tied_ends_cannot_be_frozen(pico_llama, settings, words):
    with pytest.raises(ModelError, match=words):
        expand(pico_llama(tie_word_embeddings=True), **settings)
    assert expand(pico_llama(), **settings)
    assert expand(pico_llama(tie_word_embeddings=True), freeze=["blocks", "norm"])


def test_a_relaxed_norm_of_blocks_without_norms_is_refused(pico_llama):
    base = pico_llama()
    for layer in base.model.layers:
        layer.input_layernorm = layer.post_attention_layernorm = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"relaxed_norm=0\.2 would not be used: layer 0"):
        expand(base, layers=[0], relaxed_norm=0.2)


def test_each_target_module_of_adapters_must_be_there(pico_llama):
    pytest.importorskip("peft", reason="needs peft (the extra `peft`)")
    config = AdapterConfig(target_modules=["q_proj", "no_such_proj"])
    with pytest.raises(ConfigError, match=r"target_modules=\['no_such_proj'\]"):
        add_adapters(pico_llama(), config)
