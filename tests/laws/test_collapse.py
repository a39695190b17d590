"""Back to the original architecture: exact where untrained, an interpolation where trained."""

import pytest
import torch
from tests.laws.architectures import ARCHITECTURES, make_base
from tests.laws.models import (
    INTERPOLATORS,
    VARIANTS,
    base_logits,
    greedy,
    logits,
    make_expanded,
    make_trained,
    train,
)

from controlllm import ExpansionConfig, collapse, combine, expand
from controlllm.common.errors import ConfigError, ModelError

NAMES = pytest.mark.parametrize("name", ARCHITECTURES)
VARIANT = pytest.mark.parametrize("variant", VARIANTS)
COLLAPSIBLE = ("lerp", "slerp", "dlerp", "dlerpin")


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)


@NAMES
@VARIANT
def test_an_untrained_expansion_collapses_to_the_base(name, variant):
    fresh = make_base(name)
    collapsed = collapse(make_expanded(name, variant))
    assert type(collapsed) is type(fresh)
    assert same_weights(collapsed, fresh)
    assert collapsed.config.to_dict() == fresh.config.to_dict()
    assert torch.equal(logits(collapsed), base_logits(name))
    assert torch.equal(greedy(collapsed), greedy(fresh))


@NAMES
@VARIANT
def test_collapsing_leaves_the_expanded_model_alone(name, variant):
    model = make_trained(name, variant)
    before = logits(model)
    collapsed = collapse(model)
    assert torch.equal(logits(model), before)
    assert not torch.equal(logits(collapsed), base_logits(name))
    with model.disable_expansion():
        assert torch.equal(logits(model), base_logits(name))


@NAMES
@VARIANT
def test_at_alpha_zero_it_collapses_to_the_base(name, variant):
    model = make_trained(name, variant)
    model.set_alpha(0.0)
    assert same_weights(collapse(model), make_base(name))


@NAMES
def test_at_alpha_one_a_concat_collapses_to_its_trained_branches(name):
    model = make_trained(name, "ends")
    model.set_alpha(1.0)
    torch.testing.assert_close(logits(collapse(model)), logits(model), rtol=1e-4, atol=1e-4)


def test_ends_collapse_exactly_for_they_are_linear():
    config = ExpansionConfig(num_blocks=1, expand_ends=True)
    model = expand(make_base("llama-tied"), config)
    with torch.no_grad():
        for end in ("embedding", "norm"):
            weight = model._expansion.ends[end].expanded.weight
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    collapsed = collapse(model)
    assert collapsed.get_input_embeddings().weight is collapsed.get_output_embeddings().weight
    model.set_alpha(0.5)
    torch.testing.assert_close(logits(collapsed), logits(model), rtol=1e-4, atol=1e-4)


def test_collapse_in_place_gives_the_same():
    model = make_trained("qwen3")
    assert same_weights(collapse(model), collapse(make_trained("qwen3"), inplace=True))


@pytest.mark.parametrize("interpolator", COLLAPSIBLE)
def test_a_small_change_collapses_to_nearly_the_same_function(interpolator):
    model = expand(make_base("llama"), num_blocks=2, interpolator=interpolator)
    with torch.no_grad():
        for block in model.blocks.values():
            for parameter in block.expanded.parameters():
                parameter.mul_(1.01)
    with model.record_alpha():
        expanded = logits(model)
    collapsed = logits(collapse(model))
    change = (expanded - base_logits("llama")).norm()
    assert (collapsed - expanded).norm() < 0.1 * change


def test_a_token_gate_collapses_at_its_measured_mean():
    model = make_trained("llama", "dlerp")
    with pytest.raises(ModelError, match="record_alpha"):
        collapse(model)
    with model.record_alpha():
        logits(model)
    measured = model.expansion.mean_alpha
    assert all(0 < alpha < 1 for alpha in measured.values())
    collapsed = collapse(model)
    for layer, alpha in measured.items():
        block = model.blocks[layer]
        expected = torch.lerp(
            block.pretrained.mlp.up_proj.weight, block.expanded.mlp.up_proj.weight, alpha
        )
        torch.testing.assert_close(collapsed.model.layers[layer].mlp.up_proj.weight, expected)


@pytest.mark.parametrize("interpolator", ["moe", "prog", "proj"])
def test_interpolators_without_a_meaning_for_weights_say_so(interpolator):
    model = make_trained("llama", interpolator)
    before = logits(model)
    with pytest.raises(ModelError, match=interpolator):
        collapse(model)
    assert torch.equal(logits(model), before)


@NAMES
@pytest.mark.parametrize("form", ["expanded", "collapsed"])
def test_combining_a_model_with_itself_changes_nothing(name, form):
    a = make_trained(name, "ends")
    combined = combine(a, make_trained(name, "ends"), form=form)
    expected = a if form == "expanded" else collapse(a)
    torch.testing.assert_close(logits(combined), logits(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dials", [(0.3, 0.3), (0.3, None), ({1: 0.2}, 0.3)])
def test_combining_keeps_a_dial_that_both_have_and_says_where_they_differ(dials, caplog):
    models = [make_trained("llama", "lerp") for _ in dials]
    for model, dial in zip(models, dials, strict=True):
        model.set_alpha(dial)
    combined = combine(*models)
    agree = dials[0] == dials[1]
    assert combined.expansion.dial == (0.3 if agree else None)
    assert ("stands as trained" in caplog.text) != agree
    expected = combine(make_trained("llama", "lerp"), make_trained("llama", "lerp"))
    expected.set_alpha(0.3 if agree else None)
    assert torch.equal(logits(combined), logits(expected))


@pytest.mark.parametrize("interpolator", INTERPOLATORS)
def test_combining_blends_the_trained_parts(interpolator):
    a, b = make_trained("llama", interpolator), make_trained("llama", interpolator)
    train(b, steps=1)
    at_a, at_b = logits(a), logits(b)
    assert torch.equal(logits(combine(a, b, weight=0)), at_a)
    assert torch.equal(logits(combine(a, b, weight=1)), at_b)
    half = combine(a, b)
    weights = [m.blocks[1].expanded.mlp.up_proj.weight for m in (a, b, half)]
    torch.testing.assert_close(weights[2], (weights[0] + weights[1]) / 2)
    half.set_alpha(0)
    assert torch.equal(logits(half), base_logits("llama"))
    assert torch.equal(logits(a), at_a) and torch.equal(logits(b), at_b)


@pytest.mark.parametrize(
    "other, message",
    [
        ({"num_blocks": 1}, "layers differ"),
        ({"num_blocks": 2, "interpolator": "slerp"}, "interpolator"),
        ({"num_blocks": 2, "structure": "stack"}, "structure"),
        ({"num_blocks": 2, "expand_ends": True}, "expand_ends"),
    ],
)
def test_models_expanded_in_another_way_are_not_combined(other, message):
    with pytest.raises(ModelError, match=message):
        combine(make_trained("llama"), expand(make_base("llama"), **other))


def test_models_of_another_base_are_not_combined():
    base = make_base("llama")
    with torch.no_grad():
        base.lm_head.weight[3, 4] += 1
    with pytest.raises(ModelError, match="same base"):
        combine(make_trained("llama"), expand(base, num_blocks=2))


@pytest.mark.parametrize("bad", [{"weight": 1.5}, {"weight": -0.1}, {"form": "expandd"}])
def test_wrong_ways_to_combine_are_refused(bad):
    with pytest.raises(ConfigError):
        combine(make_trained("llama"), make_trained("llama"), **bad)
