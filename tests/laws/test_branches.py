"""A new sidecar beside earlier ones: it alone trains, and what was before stays, bit for bit."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from tests.laws.architectures import make_base
from tests.laws.models import base_logits, batch, greedy, logits, prompts, train

from controlllm import collapse, expand, expand_beside, load_sidecar, load_sidecars
from controlllm.common.errors import ConfigError, ModelError
from controlllm.expansion import combine, unroll
from controlllm.expansion.hub.branches import load_branches
from controlllm.expansion.merge.low_rank import weight_changes

NAN = float("nan")
LINEAR = {"layers": [1, 3], "expand_ends": True}
EARLIER = {
    "concat": {"layers": [1, 3]},
    "stack": {"structure": "stack", "layers": [1, 2]},
    "ends": {"layers": [3], "interpolator": "dlerp", "expand_ends": True, "dial": 0.6},
}
NEW = {
    "same": {"layers": [1, 3]},
    "other": {"layers": [0, 3], "interpolator": "dlerp", "divergence": "mse"},
    "hybrid": {"structure": "hybrid", "layers": [2, 3]},
    "ends": {"layers": [3], "interpolator": "slerp", "expand_ends": True},
    "moe": {"layers": [1, 3], "interpolator": "moe"},
    "prog": {"layers": [1, 2], "interpolator": "prog"},
    "proj": {"layers": [1, 2], "interpolator": "proj"},
    "dlerpin": {"layers": [1, 3], "interpolator": "dlerpin", "divergence_tokens": "target"},
}
PAIRS = [("llama", "concat", new) for new in NEW] + [
    ("llama", "stack", "same"),
    ("llama", "stack", "hybrid"),
    ("llama", "ends", "other"),
    ("gemma2", "ends", "ends"),  # Its ends are tied.
    ("gemma2", "stack", "proj"),
]


def earlier(kind="concat", base="llama", **more):
    torch.manual_seed(1)
    return train(expand(make_base(base), **EARLIER[kind] | more))


def branch(new="same", kind="concat", base="llama"):
    """B, fresh, beside a trained A; and A's own logits."""
    model = earlier(kind, base)
    before = logits(model)
    return expand_beside(model, "b", earlier="a", **NEW[new]), before


@pytest.mark.parametrize("base, kind, new", PAIRS)
def test_the_new_one_alone_learns(base, kind, new):
    model, before = branch(new, kind, base)
    assert model.sidecars == ("a", "b") and not model.training
    assert torch.equal(logits(model), before)  # as every expansion, at whatever dial
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.train()
    model(**batch()).loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trained.keys()
    assert model.divergence.keys() == {
        layer
        for layer, block in model.blocks.items()
        if hasattr(block, "divergence") and block.divergence is not None
    }
    train(model)
    own = dict(model.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in frozen.items())
    assert any(not torch.equal(own[name], value) for name, value in trained.items())
    assert not torch.equal(logits(model), before)
    with model.disable_branch():
        assert torch.equal(logits(model), before)
    model.set_alpha(0)
    assert torch.equal(logits(model), before)
    for off in ({}, {"a": 0, "b": 0.0}):
        model.set_alpha(off)
        assert torch.equal(logits(model), base_logits(base))
    model.set_alpha(None)
    with model.disable_expansion():
        assert torch.equal(logits(model), base_logits(base))


def alone(settings):
    """What trains of an expansion by itself, by name."""
    model = expand(make_base("llama"), **settings)
    return {
        n.removeprefix("base."): p.shape for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("settings", [*NEW.values(), {"layers": [3], "train_alpha": True}])
def test_what_is_saved_is_the_new_one_as_if_it_stood_alone(settings, tmp_path):
    first = earlier()
    first.save_sidecar(tmp_path / "a")
    model = expand_beside(first, "b", earlier="a", **settings)
    trains = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
    assert sorted(trains.values()) == sorted(alone(settings).values())
    train(model).save_sidecar(tmp_path / "b")
    saved = load_file(tmp_path / "b" / "sidecar.safetensors")
    assert alone(settings).items() <= {n: t.shape for n, t in saved.items()}.items()
    model.set_alpha({"b": None})
    single = load_sidecar(make_base("llama"), tmp_path / "b").eval()
    assert torch.equal(logits(single), logits(model))
    folders = {name: tmp_path / name for name in "ab"}
    several, again = (
        load_sidecars(make_base("llama"), folders),
        load_branches(make_base("llama"), folders),
    )
    for alphas in ({"a": None, "b": None}, {"a": 0.25, "b": 0.5}, {"b": 0.75}, {"a": 1}):
        for one in (model, several, again):
            one.set_alpha(alphas)
        assert torch.equal(logits(several), logits(model))
        assert torch.equal(logits(again), logits(model))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == trains.keys()


def test_three_branches(tmp_path):
    model, first = branch("other")
    train(model)
    model.set_alpha(0.7)
    second = logits(model)
    model = expand_beside(model, "c", **NEW["ends"])
    assert torch.equal(logits(model), second)
    train(model)
    assert model.sidecars == ("a", "b", "c") and model.expansions["b"].dial == 0.7
    with model.disable_branch():
        assert torch.equal(logits(model), second)
    model.set_alpha({"a": None, "b": 0.7})
    assert torch.equal(logits(model), second)
    model.set_alpha({"a": None})
    assert torch.equal(logits(model), first)
    model.set_alpha({"a": None, "b": 0.7, "c": None})
    rows = torch.equal(greedy(model), greedy(model, use_cache=False))
    assert rows
    base = model.unload()
    assert torch.equal(logits(base), base_logits("llama"))
    assert base.config.to_dict() == make_base("llama").config.to_dict()
    assert all(p.requires_grad for p in base.parameters())


def test_by_hand_out_is_p_and_what_each_adds():
    model, _ = branch("same")
    train(model)
    model.set_alpha({"a": 0.25, "b": 0.5})
    block = model.base.model.layers[3]
    a, b = block.parts
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    run = {"position_embeddings": model.base.model.rotary_emb(x, torch.arange(5)[None])}
    with torch.no_grad():
        p, e, f = (m(x, attention_mask=None, **run) for m in (a.pretrained, a.expanded, b.expanded))
        by_hand = p + 0.25 * (e - p) + 0.5 * (f - p)
        torch.testing.assert_close(
            block(x, attention_mask=None, **run), by_hand, rtol=1e-5, atol=1e-5
        )
    # Its divergence is held to p, by the formula of the paper; a's takes no part.
    model.train()
    with model.explicit_divergence() as terms:
        model(**batch())
    assert terms.values.keys() == {1, 3}


def test_the_dial_of_the_new_one_alone_is_turned():
    model, _ = branch("other")
    train(model)
    model.set_alpha({"a": 0.3, "b": 0.8})
    model.set_alpha(0.5)
    assert model.expansion.dial == 0.5 and model.expansions["a"].dial == 0.3
    assert model.expansion.layers == [0, 3] and model.blocks.keys() == {0, 3}
    by_number = logits(model)
    model.set_alpha({"a": 0.3, "b": 0.5})
    assert torch.equal(logits(model), by_number)
    for alpha in ({0: 0.2}, torch.tensor([0.1, NAN]), None):
        model.set_alpha(alpha)
        by_itself = logits(model)
        model.set_alpha({"a": 0.3, "b": alpha})
        assert torch.equal(logits(model), by_itself)
    for wrong in ({"c": 0.3}, {"a": 2.0}, 1.5, {1: 0.5}):
        with pytest.raises(ConfigError):
            model.set_alpha(wrong)
        assert torch.equal(logits(model), by_itself)


def test_a_dial_by_layer_can_be_all_there_is(tmp_path):
    """`set_alpha` lays it over what stands; `stand_at`, and who says what was recorded, do not."""
    model = earlier()
    model.set_alpha({3: 0.4})
    by_layer = logits(model)
    model.set_alpha(0.2)
    model.stand_at({3: 0.4})
    assert torch.equal(logits(model), by_layer) and model.expansion.dial == {3: 0.4}
    model.set_alpha(0.2)
    model.save_sidecar(tmp_path / "a")
    model = expand_beside(model, "b", earlier="a", **NEW["same"])
    model.save_sidecar(tmp_path / "b")
    with model.standing({"a": {3: 0.4}}):
        assert torch.equal(logits(model), by_layer)
    with pytest.raises(ConfigError, match="'c' is not known"), model.standing({"c": 0.5}):
        pass
    assert model.expansions["a"].dial == 0.2
    before = logits(model)
    with pytest.raises(ConfigError, match="2"):
        model.stand_at({"a": {3: 2.0}})
    assert torch.equal(logits(model), before)
    model.stand_at({"a": {3: 0.4}, "b": 0.0})
    assert torch.equal(logits(model), by_layer) and model.expansions["a"].dial == {3: 0.4}
    folders = {name: tmp_path / name for name in "ab"}
    again = load_branches(make_base("llama"), folders, {"a": {3: 0.4}})
    assert torch.equal(logits(again), by_layer) and again.expansions["a"].dial == {3: 0.4}


def test_gates_and_probes_are_those_of_the_new_one():
    model = train(expand(make_base("llama"), layers=[1, 3], interpolator="dlerp"))
    model = train(expand_beside(model, "b", earlier="a", layers=[3], interpolator="dlerp"))
    with model.record_alpha():
        logits(model)
    block = model.blocks[3]
    assert model.expansion.mean_alpha == {
        3: pytest.approx(block.interpolator.last_gate.mean().item())
    }
    with model.probe() as seen:
        logits(model)
    assert seen.expanded.keys() == seen.alpha.keys() == {3}
    with torch.no_grad():
        states = model(input_ids=batch()["input_ids"], output_hidden_states=True).hidden_states
    assert len(states) == 5
    torch.testing.assert_close(model.base.model.norm(seen.merged[3]), states[-1])


@pytest.mark.parametrize("how", [False, True])
def test_gradient_checkpointing_changes_nothing(how):
    gradients = []
    for checkpointed in (False, True):
        model, _ = branch("other", "ends")
        train(model, steps=1)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": how})
            if how:
                model.enable_input_require_grads()
        model.train()
        model(**batch()).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value)


def test_it_writes_and_copies_as_any_model():
    model, _ = branch("other")
    train(model)
    assert model.config.get_text_config().num_hidden_layers == 4 + 2 + 2
    with torch.no_grad():
        cache = model(input_ids=prompts(), use_cache=True).past_key_values
        with model.disable_branch():
            model(input_ids=prompts()[:, :1], past_key_values=cache)
        with pytest.raises(ModelError, match="gaps"):
            model(input_ids=prompts()[:, :1], past_key_values=cache)
    model.train()
    assert torch.equal(greedy(model), greedy(model.eval()))
    other = copy.deepcopy(model)
    train(model)
    with model.disable_branch(), other.disable_branch():
        assert torch.equal(logits(model), logits(other))
    assert not torch.equal(logits(model), logits(other))


def test_sidecars_that_were_learned_apart_get_one_beside_them(tmp_path):
    for name in "ab":
        earlier("ends" if name == "a" else "concat").save_sidecar(tmp_path / name)
    model = load_sidecars(make_base("llama"), {n: tmp_path / n for n in "ab"})
    model.set_alpha({"b": 0.4})
    before = logits(model)
    model = train(expand_beside(model, "c", layers=[2]))
    with model.disable_branch():
        assert torch.equal(logits(model), before)
    assert {n: e.dial for n, e in model.expansions.items()} == {"a": 0.0, "b": 0.4, "c": None}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"name": "a"}, "name of an earlier"),
        ({"name": "a/b"}, "cannot be a sidecar's name"),
        ({"earlier": None}, "say what the sidecar"),
        ({"num_blocks": 9}, "only 4 layers"),
        ({"freeze": ["embeddings"]}, "trained parts of the base"),
        ({"dial": {0: 0.5}}, "alpha for layers"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_is_as_it_was(change, words):
    model = earlier("concat")
    before, names = logits(model), [n for n, p in model.named_parameters() if p.requires_grad]
    asked = {"name": "b", "earlier": "a", "layers": [1]} | change
    if "num_blocks" in change:
        del asked["layers"]
    with pytest.raises((ConfigError, ModelError), match=words):
        expand_beside(model, **asked)
    assert torch.equal(logits(model), before)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == names
    train(model)
    beside = expand_beside(model, "b", earlier="a", layers=[1])
    with pytest.raises(ConfigError, match="layers"):
        expand_beside(beside, "c", layers=[7])
    with pytest.raises(ConfigError, match="would not be used"):
        expand_beside(beside, "c", earlier="a", layers=[1])
    assert train(beside).sidecars == ("a", "b")


def test_what_has_no_place_beside_others_is_refused():
    with pytest.raises(ModelError, match="has no sidecar yet"):
        expand_beside(make_base("llama"), "b", earlier="a")
    grown = expand(make_base("llama"), layers=[1], expand_ends=True)
    grown.resize_token_embeddings(70)
    with pytest.raises(ModelError, match="added tokens"):
        expand_beside(grown, "b", earlier="a", layers=[1])
    model = earlier()
    model.set_alpha(torch.tensor([0.1, 0.2]))
    with pytest.raises(ModelError, match="one alpha per row"):
        expand_beside(model, "b", earlier="a", layers=[1])


def test_forms_of_one_sidecar_are_refused(tmp_path):
    model, _ = branch("same")
    single = earlier()
    for call in (
        lambda: model.save_pretrained(tmp_path / "full"),
        lambda: model.resize_token_embeddings(70),
        lambda: unroll(model),
        lambda: combine(model, single),
        lambda: combine(single, model),
        lambda: next(weight_changes(model)),
    ):
        with pytest.raises(ModelError, match=r"load_sidecar\(base, folder\)"):
            call()
    assert not any(tmp_path.iterdir())


def test_folded_weights_are_p_and_what_each_changes():
    """By hand; what is off has no say, and a gate whose mean is not known cannot be folded."""
    model = train(expand_beside(earlier("ends", "gemma2"), "b", earlier="a", **LINEAR))
    model.set_alpha({"a": 0.25, "b": 0.5})
    with pytest.raises(ModelError, match="never measured"):
        collapse(model)  # the gate of a
    model = train(expand_beside(earlier("concat"), "b", earlier="a", **LINEAR))
    model.set_alpha({"a": 0.25, "b": 0.5})
    plain, before = collapse(model), logits(model)
    assert torch.equal(logits(model), before)
    a, b = model.base.model.layers[3].parts
    for name, p in a.pretrained.named_parameters():
        e, f = a.expanded.get_parameter(name), b.expanded.get_parameter(name)
        by_hand = p + 0.25 * (e - p) + 0.5 * (f - p)
        torch.testing.assert_close(plain.model.layers[3].get_parameter(name), by_hand)
    head = model.lm_head
    by_hand = head.pretrained.weight.lerp(head.expanded.weight, 0.5)
    torch.testing.assert_close(plain.lm_head.weight, by_hand)
    model.set_alpha({"a": 0.25})
    single = earlier("concat")
    single.set_alpha(0.25)
    assert torch.equal(logits(collapse(model)), logits(collapse(single)))
    model.set_alpha({})
    assert torch.equal(logits(collapse(model, inplace=True)), base_logits("llama"))
