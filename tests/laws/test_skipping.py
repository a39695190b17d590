"""What has no weight does not run, and the bits are the same; a gap in a KV cache is refused."""

import copy

import pytest
import torch
from tests.laws.architectures import ARCHITECTURES, make_base
from tests.laws.models import batch, greedy, make_trained, prompts, train

from controlllm import expand
from controlllm.common.errors import ModelError
from controlllm.expansion import ConcatBlock

STRAIGHT = ("concat", "proj", "ends")


def ran(model):
    """How often the branches of the first block run in a forward pass: (pretrained, expanded)."""
    block, counts = next(iter(model.blocks.values())), [0, 0]
    hooks = []
    for index, branch in enumerate((block.pretrained, block.expanded)):

        def count(*args, index=index):
            counts[index] += 1

        hooks.append(branch.register_forward_hook(count))
    out = forward(model)
    for hook in hooks:
        hook.remove()
    return tuple(counts), out


@torch.no_grad()
def forward(model):
    return model(input_ids=batch()["input_ids"]).logits


def unskipped(model, monkeypatch):
    """The same model, with both branches run and joined in any case."""
    with monkeypatch.context() as patch:
        patch.setattr(ConcatBlock, "copy_alone", False)
        return forward(model)


@pytest.mark.parametrize("variant", ["concat", "stack", "hybrid", "ends", "dlerp", "slerp", "prog"])
def test_at_zero_no_copy_runs(variant):
    model = make_trained("llama", variant)
    model.set_alpha(0.0)
    counts, out = ran(model)
    assert counts == (1, 0)
    with torch.no_grad():
        assert torch.equal(out, make_base("llama")(input_ids=batch()["input_ids"]).logits)


@pytest.mark.parametrize("variant", STRAIGHT)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-neox"])
def test_at_one_a_straight_line_runs_the_copy_only(name, variant, monkeypatch):
    model = make_trained(name, variant)
    model.set_alpha(1.0)
    counts, out = ran(model)
    assert counts == (0, 1)
    assert torch.equal(out, unskipped(model, monkeypatch))


@pytest.mark.parametrize("variant", ["stack", "dlerp", "dlerpin", "moe", "slerp", "prog"])
def test_at_one_all_others_need_both(variant):
    model = make_trained("llama", variant)
    model.set_alpha(1.0)
    assert ran(model)[0] == (1, 1)


def test_what_else_needs_both_branches():
    model = make_trained("llama")
    for alpha in (0.999, None, torch.ones(2)):
        model.set_alpha(alpha)
        assert ran(model)[0] == (1, 1)
    model.set_alpha(1.0)
    model.train()(**batch()).loss.backward()  # a divergence is wanted
    assert len(model.divergence) == 2
    maps = make_trained("llama")
    maps.set_attn_implementation("eager")
    trained = maps(input_ids=prompts(), output_attentions=True).attentions
    for alpha in (1.0, 0.0):
        maps.set_alpha(alpha)
        shown = maps(input_ids=prompts(), output_attentions=True).attentions
        assert len(shown) == 4
        assert torch.equal(shown[1], trained[1])  # the frozen block's


def test_training_at_one_without_a_divergence_is_the_same():
    def gradients(patched):
        base = make_base("llama")
        model = train(expand(base, num_blocks=2, divergence="none")).train()
        model.set_alpha(1.0)
        if patched:
            for block in model.blocks.values():
                block.interpolator.__class__ = type(
                    "Lerp", (type(block.interpolator),), {"straight": False}
                )
        model(**batch()).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    ours, theirs = gradients(False), gradients(True)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert torch.equal(gradient, theirs[name]), name


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "qwen2-windowed", "gpt2"])
def test_cached_is_uncached_where_a_branch_is_skipped(name, kind, alpha):
    """Block 0 is expanded, which caches are asked for their length."""
    model = train(expand(make_base(name), layers=[0, 1, 3]))
    model.set_alpha(alpha)
    cached = greedy(model, cache_implementation=kind)
    assert torch.equal(cached, greedy(model, use_cache=False))
    assert torch.equal(cached, greedy(model, cache_implementation=kind))  # its cache is used again
    model.set_alpha(0.5)
    assert torch.equal(greedy(model, cache_implementation=kind), greedy(model, use_cache=False))


def filled(model, alpha):
    model.set_alpha(alpha)
    with torch.no_grad():
        return model(input_ids=prompts(), use_cache=True).past_key_values


@pytest.mark.parametrize("before, after", [(0.0, 0.5), (1.0, 0.5), (0.0, 1.0), (1.0, 0.0)])
def test_a_cache_with_gaps_is_refused(before, after):
    model = make_trained("llama")
    cache = filled(model, before)
    model.set_alpha(after)
    with pytest.raises(ModelError, match="gaps"):
        model(input_ids=prompts()[:, :1], past_key_values=copy.deepcopy(cache))
    model.set_alpha(before)
    with torch.no_grad():
        model(input_ids=prompts()[:, :1], past_key_values=cache)
    assert cache.get_seq_length() == 7


def test_a_cache_filled_by_both_branches_serves_the_base_and_not_the_copies_again():
    model = make_trained("llama")
    cache = filled(model, 0.5)
    one = prompts()[:, :1]
    with torch.no_grad(), model.disable_expansion():
        model(input_ids=one, past_key_values=cache)
    with pytest.raises(ModelError, match="gaps"):
        model(input_ids=one, past_key_values=cache)
    cache.crop(-cache.get_seq_length())
    with torch.no_grad():
        ours = model(input_ids=prompts(), past_key_values=cache).logits
        assert torch.equal(ours, model(input_ids=prompts()).logits)


def test_the_cache_of_a_pass_that_failed_is_refused():
    """It fails in an expanded block, when blocks below it have written."""
    model = train(expand(make_base("llama"), layers=[1, 3]))
    cache, one = filled(model, 0.5), prompts()[:, :1]
    model.set_alpha(torch.full((len(one) + 1,), 0.5))
    with pytest.raises(ModelError, match="rows"):
        model(input_ids=one, past_key_values=cache)
    model.set_alpha(0.5)
    with pytest.raises(ModelError, match="has failed"):
        model(input_ids=one, past_key_values=cache)


def test_a_cache_that_was_refused_is_as_it_was():
    model = make_trained("llama")
    cache, one = filled(model, 0.0), prompts()[:, :1]
    model.set_alpha(0.5)
    with pytest.raises(ModelError, match="gaps"):
        model(input_ids=one, past_key_values=cache)
    model.set_alpha(0.0)
    with torch.no_grad():
        assert model(input_ids=one, past_key_values=cache).logits is not None


def test_a_stack_reads_what_it_wrote():
    model = make_trained("llama", "stack")
    cache = filled(model, 1.0)
    model.set_alpha(0.5)
    with torch.no_grad():
        model(input_ids=prompts()[:, :1], past_key_values=cache)
    cache = filled(model, 0.0)
    model.set_alpha(0.5)
    with pytest.raises(ModelError, match="2 of the branches"):
        model(input_ids=prompts()[:, :1], past_key_values=cache)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hidden_states_and_beams_at_one(name):
    model = make_trained(name)
    model.set_alpha(1.0)
    beams = {"num_beams": 2, "max_new_tokens": 4}
    assert torch.equal(greedy(model, **beams), greedy(model, **beams, use_cache=False))
    with torch.no_grad():
        states = model(input_ids=prompts(), output_hidden_states=True).hidden_states
    assert len(states) == 5


def test_a_copy_that_runs_alone_is_searched_once_and_again_when_a_module_was_replaced():
    model = make_trained("llama")
    model.set_alpha(1.0)
    expected = forward(model)
    model = copy.deepcopy(model)
    block = next(iter(model.blocks.values()))
    searched, walk = [], block.expanded.named_modules

    def named_modules(*args):  # others' walks through the whole model give arguments
        searched.extend([] if args else ["the copy"])
        return walk(*args)

    block.expanded.named_modules = named_modules
    filled(model, 1.0), filled(model, 1.0)
    assert not searched  # the list came with the copy
    attention = copy.deepcopy(block.expanded.self_attn)
    block.expanded.self_attn = attention
    cache = filled(model, 1.0)
    assert searched == ["the copy"] and attention.layer_idx == block.slot
    with torch.no_grad():
        one = prompts()[:, :1]
        cached = model(input_ids=one, past_key_values=cache).logits
        whole = model(input_ids=torch.cat([prompts(), one], dim=1)).logits[:, -1:]
    torch.testing.assert_close(cached, whole)
    assert torch.equal(forward(model), expected)
