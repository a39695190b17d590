"""Expansion changes no output; frozen tensors never change; the base can be got back always."""

import copy
import pickle

import pytest
import torch
from tests.laws.architectures import ARCHITECTURES, make_base
from tests.laws.models import (
    MATRIX,
    base_logits,
    batch,
    logits,
    make_expanded,
    make_trained,
    train,
)

from controlllm import expand

ALL = pytest.mark.parametrize("name, variant", MATRIX)


def frozen_tensors(model):
    return {n: p for n, p in model.named_parameters() if not p.requires_grad}


@ALL
def test_expanding_leaves_logits_bit_for_bit(name, variant):
    assert torch.equal(logits(make_expanded(name, variant)), base_logits(name))


@ALL
def test_training_moves_the_model_and_never_the_frozen_tensors(name, variant):
    model = make_trained(name, variant)
    before = make_base(name).state_dict()
    assert (logits(model) - base_logits(name)).abs().max() > 0.05
    plain = {n.removeprefix("base.").replace("pretrained.", ""): p for n, p in
             frozen_tensors(model).items() if "interpolator" not in n}  # fmt: skip
    assert plain.keys() == dict(make_base(name).named_parameters()).keys()
    for key, parameter in plain.items():
        assert torch.equal(parameter, before[key]), key
        assert parameter.grad is None


@ALL
def test_alpha_zero_is_the_base_after_training(name, variant):
    model = make_trained(name, variant)
    trained = logits(model)
    model.set_alpha(0.0)
    assert torch.equal(logits(model), base_logits(name))
    model.set_alpha(None)
    assert torch.equal(logits(model), trained)


@ALL
def test_disabled_is_the_base_after_training(name, variant):
    model = make_trained(name, variant)
    with model.disable_expansion():
        assert torch.equal(logits(model), base_logits(name))
    assert not torch.equal(logits(model), base_logits(name))


@ALL
def test_unload_gives_the_base_back(name, variant):
    fresh = make_base(name)
    base = make_trained(name, variant).unload()
    assert type(base) is type(fresh)
    assert base.config.to_dict() == fresh.config.to_dict()
    assert torch.equal(logits(base), base_logits(name))
    ours, theirs = base.state_dict(), fresh.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert all(p.requires_grad for p in base.parameters())
    assert len(list(base.parameters())) == len(list(fresh.parameters()))


@ALL
def test_every_trained_tensor_gets_a_gradient(name, variant):
    model = make_expanded(name, variant)
    # Without a start of their own, zeroed projections would hide whether gradients arrive.
    train(model, steps=1).train()
    model(**batch()).loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    without = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().any()]
    assert trained
    assert all(torch.isfinite(p.grad).all() for p in trained.values() if p.grad is not None)
    # Experts that no token chose, and biases that softmax cannot see, have a gradient of zero.
    assert [n for n in without if "expert" not in n and "k_proj.bias" not in n] == []


def test_alpha_is_a_dial_between_the_two_branches():
    model = make_trained("llama")
    seen = []
    for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
        model.set_alpha(alpha)
        assert model.alphas() == dict.fromkeys(model.blocks, alpha)
        seen.append((logits(model) - base_logits("llama")).abs().mean().item())
    assert seen == sorted(seen)
    model.set_alpha(None)
    assert seen[2] == (logits(model) - base_logits("llama")).abs().mean().item()


def test_the_dial_of_one_layer_leaves_the_others():
    model = make_trained("llama")
    first, second = model.blocks
    model.set_alpha({first: 0.0})
    assert model.alphas() == {first: 0.0, second: 0.5}
    model.set_alpha({second: 0.0})
    assert torch.equal(logits(model), base_logits("llama"))
    model.set_alpha({first: None, second: None})
    assert model.alphas() == {first: 0.5, second: 0.5}
    assert model.expansion.dial in (None, {})


def test_disabling_nests_and_survives_errors():
    model = make_trained("llama")
    trained = logits(model)
    with pytest.raises(RuntimeError), model.disable_expansion(), model.disable_expansion():
        raise RuntimeError
    assert torch.equal(logits(model), trained)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_two_architectures_in_one_process_do_not_disturb_each_other(name):
    models = {other: make_trained(other, "ends") for other in ("llama-tied", "qwen3", "gemma3")}
    before = {other: logits(model) for other, model in models.items()}
    make_trained(name, "ends").unload()
    assert torch.equal(logits(make_base(name)), base_logits(name))
    assert all(torch.equal(logits(model), before[other]) for other, model in models.items())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("variant", ["ends", "hybrid"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_are_whole_and_apart(name, variant, way):
    model = make_trained(name, variant)
    twin = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(twin), logits(model))
    twin.set_alpha(0.0)
    assert torch.equal(logits(twin), base_logits(name))
    assert not torch.equal(logits(model), base_logits(name))


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize(
    "settings", [{"divergence": "attention"}, {"relaxed_norm": "dynamic"}], ids=str
)
def test_copies_have_their_own_hooks(way, settings):
    model = expand(make_base("llama", attn_implementation="eager"), num_blocks=2, **settings)
    start = logits(model)
    twin = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    train(twin)
    assert torch.equal(logits(model), start)
    assert not torch.equal(logits(twin), start)
    assert all(value > 0 for value in twin.divergence.values())
    assert model.divergence == {}
