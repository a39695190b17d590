"""Several named adapters on one base: switched, deleted, blended, folded, taken out."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.integrations.peft.making import add_trained, make_adapted, make_two, step, stir
from tests.laws.architectures import make_base
from tests.laws.models import base_logits, batch, greedy, logits, make_expanded

from controlllm import collapse, combine, expand
from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.tensors import copy_tensors
from controlllm.expansion.files.sidecar import sidecar_tensors
from controlllm.integrations.peft import ControlLLMPeftConfig, adapters_of

OTHER_LAYERS = {"layers": [0, 2, 3], "interpolator": "dlerp"}


def alone(model: PeftModel, name: str, base: str = "llama"):
    """An adapter on a base of its own, as an expanded model."""
    adapter = adapters_of(model).named[name]
    expanded = expand(make_base(base), adapter.expansion)
    copy_tensors(sidecar_tensors(expanded), adapter.tensors(), name)
    return expanded


@pytest.mark.parametrize(
    "base, other",
    [
        ("llama", {"num_blocks": 2}),
        ("llama-tied", {"expand_ends": True}),
        ("qwen2-windowed", OTHER_LAYERS),
        ("gemma2", {"layers": [0, 2], "structure": "stack"}),
    ],
    ids=str,
)
def test_each_adapter_is_what_it_is_alone(base, other):
    model = make_two(base, other)
    for name in ("maths", "code", "maths"):
        model.set_adapter(name)
        expanded = alone(model, name, base)
        assert torch.equal(logits(model), logits(expanded))
        tokens = greedy(expanded)
        for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
            assert torch.equal(greedy(model, **options), tokens)
        assert torch.equal(greedy(model, num_beams=2), greedy(expanded, num_beams=2))
    with model.disable_adapter():
        assert torch.equal(logits(model), base_logits(base))
        assert torch.equal(greedy(model), greedy(make_base(base)))


def test_only_the_active_adapter_gets_gradients():
    model = make_two(other=OTHER_LAYERS)
    for name, idle in (("maths", "code"), ("code", "maths")):
        model.set_adapter(name)
        model.train()
        model(**batch()).loss.backward()
        named = adapters_of(model).named
        gates = {"logit"} if name == "maths" else set()
        for key, tensor in named[name].tensors().items():
            trains = key.rpartition(".")[2] not in gates
            assert tensor.requires_grad == trains and (tensor.grad is not None) == trains, key
        assert all(t.grad is None and not t.requires_grad for t in named[idle].tensors().values())
        held = {id(t) for adapter in named.values() for t in adapter.tensors().values()}
        for parameter in model.parameters():
            if id(parameter) not in held:
                assert parameter.grad is None and not parameter.requires_grad
        model.zero_grad(set_to_none=True)


def test_training_one_leaves_base_and_others_as_they_are():
    model = make_two()
    before = {k: t.clone() for k, t in adapters_of(model).named["code"].tensors().items()}
    model.set_adapter("maths")
    step(model)
    after = adapters_of(model).named["code"].tensors()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with model.disable_adapter():
        assert torch.equal(logits(model), base_logits("llama"))


def test_the_first_keeps_its_training_state_when_another_is_added():
    model = make_adapted()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    add_trained(model, "code", seed=4, num_blocks=1)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    assert model.active_adapters == ["default"]


def test_deleting_the_active_one_makes_the_other_active_everywhere():
    model = make_two(other=OTHER_LAYERS)
    code = alone(model, "code")
    with pytest.warns(UserWarning, match="Setting active adapter to code"):
        model.delete_adapter("maths")
    assert model.active_adapters == ["code"]
    assert {tuple(s.active_adapters) for s in model.get_layer_status()} == {("code",)}
    assert torch.equal(logits(model), logits(code))
    assert not any("maths" in name for name, _ in model.named_parameters())
    model.delete_adapter("code")
    assert torch.equal(logits(model.base_model.model), base_logits("llama"))
    add_trained(model, "third", seed=5, num_blocks=2)
    model.set_adapter("third")
    assert torch.equal(logits(model), logits(alone(model, "third")))


@pytest.mark.parametrize("variant", ["concat", "stack", "hybrid", "ends", "slerp"])
@pytest.mark.parametrize("base", ["llama", "llama-tied"])
def test_merge_and_unload_is_collapse(base, variant):
    model, expanded = make_adapted(base, variant), make_expanded(base, variant)
    stir(model, "default")
    copy_tensors(
        sidecar_tensors(expanded), adapters_of(model).named["default"].tensors(), "the adapter"
    )
    merged, collapsed = model.merge_and_unload(safe_merge=True), collapse(expanded)
    assert type(merged) is type(make_base(base))
    ours, theirs = merged.state_dict(), collapsed.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert merged.config.to_dict() == collapsed.config.to_dict()
    assert torch.equal(greedy(merged), greedy(collapsed))


def test_a_token_gate_is_merged_at_its_measured_mean():
    model = make_adapted(variant="dlerp")
    stir(model, "default")
    with pytest.raises(ModelError, match="record_alpha"):
        model.merge_and_unload()
    with model.record_alpha():
        logits(model)
    expanded = alone(model, "default")
    assert model.peft_config["default"].mean_alpha == expanded.expansion.mean_alpha
    ours, theirs = model.merge_and_unload().state_dict(), collapse(expanded).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("interpolator", ["moe", "prog", "proj"])
def test_what_has_no_meaning_for_weights_is_not_merged(interpolator):
    model = make_adapted(variant=interpolator)
    stir(model, "default")
    before = logits(model)
    with pytest.raises(ModelError, match=f"{interpolator!r} has no meaning for weights"):
        model.merge_and_unload()
    assert torch.equal(logits(model), before)


def test_several_are_not_merged_and_merging_is_not_undone():
    model = make_two()
    before = logits(model)
    with pytest.raises(ModelError, match="Exactly one adapter"):
        model.merge_and_unload(adapter_names=["maths", "code"])
    with pytest.raises(ModelError, match="cannot be undone"):
        model.merge_adapter()
    with torch.no_grad():
        adapters_of(model).named["code"].tensors()["model.layers.1.expanded.mlp.up_proj.weight"][
            0, 0
        ] = math.nan
    with pytest.raises(ModelError, match=r"layers\.1.* not finite"):
        model.merge_and_unload(safe_merge=True, adapter_names=["code"])
    assert torch.equal(logits(model), before)
    maths = collapse(alone(model, "maths"))
    assert torch.equal(logits(model.merge_and_unload()), logits(maths))


@pytest.mark.parametrize("base", ["qwen2-windowed", "llama-tied"])
def test_unload_gives_the_base_back(base):
    plain = make_base(base)
    model = make_two(base, {"expand_ends": True, "layers": [0]})
    given = model.unload()
    assert given.config.to_dict() == plain.config.to_dict()
    assert {n: p.requires_grad for n, p in given.named_parameters()} == {
        n: p.requires_grad for n, p in plain.named_parameters()
    }
    ours, theirs = given.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert getattr(given, "all_tied_weights_keys", {}) == plain.all_tied_weights_keys
    given.tie_weights()
    assert torch.equal(logits(given), base_logits(base))
    assert not given._forward_hooks and not given._forward_pre_hooks
    again = get_peft_model(given, ControlLLMPeftConfig(num_blocks=1))
    assert torch.equal(logits(again), base_logits(base))


@pytest.mark.parametrize("variant", ["concat", "ends", "stack", "dlerp"])
def test_a_weighted_adapter_of_two_is_combine(variant):
    model = make_adapted(variant=variant)
    stir(model, "default", seed=3)
    add_trained(model, "code", 4, **model.peft_config["default"].expansion().to_dict())
    both = combine(alone(model, "default"), alone(model, "code"), 0.3)
    with model.record_alpha():
        logits(model)
    model.add_weighted_adapter(["default", "code"], [0.7, 0.3], "both")
    assert model.active_adapters == ["default"]
    assert model.peft_config["both"].mean_alpha is None
    model.set_adapter("both")
    assert torch.equal(logits(model), logits(both))


def test_a_weighted_adapter_of_three_is_their_mean():
    model = make_two()
    add_trained(model, "law", 5, num_blocks=2)
    weights = [0.5, 0.0, 0.5]
    model.add_weighted_adapter(["maths", "code", "law"], weights, "all")
    model.add_weighted_adapter(["maths", "code", "law"], [0.2, 0.3, 0.5], "third")
    named = adapters_of(model).named
    for key, tensor in named["all"].tensors().items():
        mean = (named["maths"].tensors()[key] + named["law"].tensors()[key]) / 2
        torch.testing.assert_close(tensor, mean, rtol=1e-5, atol=1e-6)
    for key, tensor in named["third"].tensors().items():
        parts = [named[name].tensors()[key] for name in ("maths", "code", "law")]
        mean = 0.2 * parts[0] + 0.3 * parts[1] + 0.5 * parts[2]
        torch.testing.assert_close(tensor, mean, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_together_is_not_blended():
    model = make_two(other=OTHER_LAYERS)
    add_trained(model, "moved", 5, layers=[0, 1])
    for others, error, message in (
        (["maths", "code"], ModelError, "differ in interpolator: 'lerp' against 'dlerp'"),
        (["maths", "moved"], ModelError, "differ in shape or name"),
        (["maths", "mats"], ConfigError, "Did you mean 'maths'"),
    ):
        with pytest.raises(error, match=message):
            model.add_weighted_adapter(others, [0.5, 0.5], "both")
    for weights in ([0.5, 0.6], [1.5, -0.5], [1.0]):
        with pytest.raises(ConfigError, match="weights="):
            model.add_weighted_adapter(["maths", "maths"], weights, "both")
    with pytest.raises(ConfigError, match="combination_type='svd'"):
        model.add_weighted_adapter(["maths"], [1.0], "both", combination_type="svd")
    with pytest.raises(ConfigError, match="exists already"):
        model.add_weighted_adapter(["maths"], [1.0], "code")
    assert sorted(model.peft_config) == ["code", "maths", "moved"]
    assert sorted(adapters_of(model).named) == ["code", "maths", "moved"]


def test_tied_weights_stay_tied_in_the_base_and_in_each_adapter():
    model = make_two("llama-tied", {"expand_ends": True})
    base = model.base_model.model
    model.set_adapter("code")
    wanted = logits(model)
    assert len(base.all_tied_weights_keys) == 2
    base.tie_weights(recompute_mapping=False)
    for target, source in base.all_tied_weights_keys.items():
        assert base.get_parameter(target) is base.get_parameter(source)
    assert torch.equal(logits(model), wanted)
    model.delete_adapter("code")
    assert len(base.all_tied_weights_keys) == 1
    base.tie_weights(recompute_mapping=False)
    with model.disable_adapter():
        assert torch.equal(logits(model), base_logits("llama-tied"))


def test_the_dial_is_the_active_adapters():
    model = make_two()
    expanded = alone(model, "maths")
    for dial in (0.0, 0.3, {1: 0.9}, None):
        model.set_alpha(dial)
        expanded.set_alpha(dial)
        assert torch.equal(logits(model), logits(expanded))
        assert model.alphas() == expanded.alphas()
        assert model.peft_config["maths"].dial == expanded.expansion.dial
    model.set_alpha(0)
    assert torch.equal(logits(model), base_logits("llama"))
    model.set_adapter("code")
    assert torch.equal(logits(model), logits(alone(model, "code")))


def test_a_copy_is_a_model_of_its_own():
    model = make_two(other={"expand_ends": True})
    twin = copy.deepcopy(model)
    wanted = logits(model)
    stir(model, "maths", seed=9)
    assert torch.equal(logits(twin), wanted) and not torch.equal(logits(model), wanted)
    twin.set_adapter("code")
    assert adapters_of(twin) is not adapters_of(model)
    assert adapters_of(model).active is adapters_of(model).named["maths"]
    assert torch.equal(logits(twin), logits(alone(twin, "code")))


def test_half_precision_copies_stay_in_half_precision():
    """PEFT would make them float32, and a block cannot compute in two types."""
    base = make_base("llama").bfloat16()
    model = get_peft_model(base, ControlLLMPeftConfig(num_blocks=2)).eval()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(model), logits(make_base("llama").bfloat16()))


@pytest.mark.parametrize("name", ["mlp", "1", "expanded", "weight", "controlllm_parts"])
def test_names_that_would_be_mixed_up_are_refused(name):
    """PEFT leaves out of an adapter's file every tensor with the name of another adapter in it."""
    model = make_two()
    with pytest.raises(ConfigError, match=f"adapter_name={name!r}"):
        model.add_adapter(name, ControlLLMPeftConfig(num_blocks=1))
    assert sorted(model.peft_config) == ["code", "maths"]


def test_refusals_leave_the_base_untouched():
    base = make_base("llama")
    before = base.config.to_dict()
    for config, message in (
        (ControlLLMPeftConfig(num_blocks=9), "only 4 layers"),
        (ControlLLMPeftConfig(layers=[7]), "out of range"),
        (ControlLLMPeftConfig(num_blocks=1, dial={3: 0.5, 2: 0.1}), r"layers \[2\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            get_peft_model(base, config)
    assert base.config.to_dict() == before and not base._forward_hooks
    assert torch.equal(logits(base), base_logits("llama"))
    with pytest.raises(ModelError, match="expanded already"):
        get_peft_model(make_expanded("llama"), ControlLLMPeftConfig(num_blocks=1))
    with pytest.raises(ModelError, match="expanded already"):
        expand(make_adapted().get_base_model(), num_blocks=1)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'num_blocks'"):
        ControlLLMPeftConfig(num_block=2)
    with pytest.raises(ConfigError, match="expand_ends=True"):
        ControlLLMPeftConfig(freeze=["blocks", "norm", "head"])
    with pytest.raises(ConfigError, match="task_type='SEQ_CLS'"):
        ControlLLMPeftConfig(task_type="SEQ_CLS")
    with pytest.raises(ConfigError, match="alpha=2"):
        ControlLLMPeftConfig(alpha=2)


def test_one_adapter_at_a_time_and_one_method():
    model = make_two()
    with pytest.raises(ModelError, match="Only one"):
        model.base_model.set_adapter(["maths", "code"])
    with pytest.raises(ModelError, match="adapter_names"):
        model(input_ids=batch()["input_ids"], adapter_names=["maths", "code"])
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("lora", LoraConfig(target_modules=["q_proj"]))


def test_a_quantised_base_is_refused():
    base = make_base("llama")
    projection = base.model.layers[3].mlp.up_proj
    packed = torch.zeros(projection.weight.shape, dtype=torch.uint8)
    projection.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ModelError, match="a copy of packed weights cannot be trained"):
        get_peft_model(base, ControlLLMPeftConfig(num_blocks=2))


def test_a_model_without_adapters_says_so():
    with pytest.raises(ModelError, match="no Control LLM adapters"):
        adapters_of(make_base("llama"))
