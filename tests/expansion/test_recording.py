"""`model.probe()`: what is seen is what was computed, and looking changes nothing."""

import copy
import threading

import pytest
import torch
from tests.laws.models import batch, greedy, logits, make_trained, prompts

from controlllm.common.errors import ConfigError, ModelError
from controlllm.expansion import ConcatBlock

VARIANTS = ["concat", "stack", "hybrid", "ends", "dlerp", "slerp", "moe", "prog"]


def hooks_of(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_always_called)
        for m in model.modules()
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_seen_is_what_was_computed(variant):
    model = make_trained("llama", variant)
    before, hooks = logits(model), hooks_of(model)
    with model.probe() as p, torch.no_grad():
        states = model(**batch(), output_hidden_states=True).hidden_states
        assert torch.equal(logits(model), before)
    assert hooks_of(model) == hooks and p.count == 2 and len(p.passes) == 1
    ids = batch()["input_ids"]
    with model.probe() as p, torch.no_grad():
        model(**batch())
    for layer, block in model.blocks.items():
        seen = (p.pretrained[layer], p.expanded[layer], p.merged[layer])
        assert all(x.shape == (*ids.shape, 32) and not x.requires_grad for x in seen)
        if layer + 1 < len(states) - 1:  # the last one is behind the final norm
            assert torch.equal(seen[2], states[layer + 1])
        alpha = p.alpha[layer]
        assert alpha.shape == ids.shape
        if isinstance(block, ConcatBlock):
            x = p.merged[layer]
            own = block.interpolator.mix(seen[0], seen[1], alpha[..., None])
            torch.testing.assert_close(own, x, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(alpha.mean().item(), model.alphas()[layer])
        else:
            assert torch.equal(seen[2], seen[1]) and (alpha == 1).all()
    ends = {"embedding", "norm"} if variant == "ends" else set()
    assert set(p.merged) == {*model.blocks, *ends}
    if ends:
        torch.testing.assert_close(
            p.merged["norm"], torch.lerp(p.pretrained["norm"], p.expanded["norm"], 0.5)
        )
        assert set(p.alpha) == {*model.blocks, "embedding", "norm", "head"}
        assert p.alpha["head"].tolist() == [0.5]


@pytest.mark.parametrize("variant", ["concat", "stack", "ends"])
def test_a_branch_that_is_not_needed_is_computed_for_the_record(variant):
    model = make_trained("llama", variant)
    with model.probe() as free, torch.no_grad():
        logits(model)
    first = min(model.blocks)
    for alpha in (0.0, 1.0):
        model.set_alpha({first: alpha})
        before = logits(model)
        with model.probe([first]) as p:
            assert torch.equal(logits(model), before)
        assert torch.equal(p.pretrained[first], free.pretrained[first])
        assert torch.equal(p.expanded[first], free.expanded[first])
        assert (p.alpha[first] == alpha).all()
        assert set(p.merged) == {first}


def test_with_the_expansion_off_there_is_the_base_only():
    model = make_trained("llama", "ends")
    with model.probe() as p, model.disable_expansion():
        logits(model)
    layer = min(model.blocks)
    assert torch.equal(p.merged[layer], p.pretrained[layer]) and (p.alpha[layer] == 0).all()
    assert (p.alpha["norm"] == 0).all()
    with pytest.raises(ModelError, match="was not seen in this forward pass"):
        p.expanded[layer]


def test_each_row_of_an_alpha_per_token_is_seen():
    model = make_trained("llama", "dlerp")
    model.set_alpha(0.5)
    with model.probe() as half:
        logits(model)
    model.set_alpha(None)
    with model.probe([min(model.blocks)]) as whole:
        logits(model)
    layer = min(model.blocks)
    torch.testing.assert_close(half.alpha[layer], 0.5 * whole.alpha[layer])
    assert whole.alpha[layer].std() > 0


@pytest.mark.parametrize("variant", ["concat", "stack", "ends", "dlerp"])
def test_alphas_of_rows_are_seen(variant):
    model = make_trained("llama", variant)
    layer = min(model.blocks)
    model.set_alpha(None)
    with model.probe() as trained:
        logits(model)
    model.set_alpha(torch.tensor([0.0, torch.nan]))
    with model.probe() as p:
        logits(model)
    assert (p.alpha[layer][0] == 0).all()
    assert torch.equal(p.alpha[layer][1], trained.alpha[layer][1])
    assert torch.equal(p.merged[layer][0], p.pretrained[layer][0])


def test_generation_is_seen_pass_by_pass_and_bounded():
    model = make_trained("llama", "concat")
    plain = greedy(model)
    with model.probe() as p:
        assert torch.equal(greedy(model), plain)
    layer = min(model.blocks)
    assert p.count == 8 and len(p.passes) == 1 and p.merged[layer].shape == (2, 1, 32)
    with model.probe([layer], max_passes=None) as p:
        greedy(model)
    lengths = [one.expanded[layer].shape[1] for one in p.passes]
    assert lengths == [prompts().shape[1]] + 7 * [1]
    with model.probe([layer]) as straight, torch.no_grad():
        model(input_ids=plain[:, :-1])
    joined = torch.cat([one.merged[layer] for one in p.passes], 1)
    torch.testing.assert_close(joined, straight.merged[layer], rtol=1e-4, atol=1e-5)


def test_ends_at_alpha_0_are_seen_as_well():
    model = make_trained("llama", "ends")
    with model.probe() as free:
        logits(model)
    model.set_alpha({-1: 0.0})
    with model.probe(device="cpu") as p:
        logits(model)
    assert torch.equal(p.expanded["embedding"], free.expanded["embedding"])
    assert torch.equal(p.merged["embedding"], p.pretrained["embedding"])
    assert (p.alpha["norm"] == 0).all() and "norm" in p.expanded


def test_with_a_cache_a_branch_that_did_not_run_is_missing():
    model = make_trained("llama", "concat")
    model.set_alpha(0.0)
    plain = greedy(model)
    with model.probe() as p:
        assert torch.equal(greedy(model), plain)
    assert not p.expanded and (p.alpha[min(model.blocks)] == 0).all()
    with pytest.raises(ModelError, match="is given a KV cache"):
        p.expanded[min(model.blocks)]


def test_gradients_are_kept_on_request():
    model = make_trained("llama", "concat")
    layer = max(model.blocks)
    with model.probe(keep_grad=True) as p:
        model(**batch())
    (p.expanded[layer] - p.pretrained[layer]).square().sum().backward()
    assert any(
        q.grad is not None and q.grad.any() for q in model.blocks[layer].expanded.parameters()
    )


def test_checkpointed_blocks_that_run_again_are_no_pass():
    model = make_trained("llama", "concat").train()
    model.gradient_checkpointing_enable()
    with model.probe() as p:
        loss = model(**batch()).loss
        seen = p.merged[min(model.blocks)]
        loss.backward()
    assert p.count == 1 and p.merged[min(model.blocks)] is seen


def test_an_error_leaves_no_hook_and_the_next_pass_is_whole():
    model = make_trained("llama", "concat")
    hooks, before = hooks_of(model), logits(model)
    with model.probe() as p:
        with pytest.raises(IndexError):
            model(input_ids=torch.full((1, 4), 10**6))
        with pytest.raises(ModelError, match="not seen"):
            p.merged[min(model.blocks)]
        assert torch.equal(logits(model), before)
        assert p.merged[min(model.blocks)].shape == (2, 10, 32)
    with pytest.raises(KeyError), model.probe():
        raise KeyError("of the user")
    assert hooks_of(model) == hooks


def test_passes_of_other_threads_are_not_seen():
    model = make_trained("llama", "concat")
    with model.probe() as p:
        other = threading.Thread(target=logits, args=(model,))
        other.start()
        other.join()
        assert p.count == 0
        with pytest.raises(ModelError, match="nothing was seen yet"):
            p.merged[0]
        logits(model)
    assert p.count == 1


def test_two_probes_at_once_and_what_is_asked_wrongly():
    model = make_trained("llama", "concat")
    first, *_, last = model.blocks
    with model.probe([first]) as one, model.probe([last], device="cpu") as two:
        logits(model)
    assert set(one.alpha) == {first} and set(two.alpha) == {last}
    with (
        pytest.raises(ConfigError, match=r"layers=\[99\] are not expanded; expanded are"),
        model.probe([99]),
    ):
        pass
    with pytest.raises(ConfigError, match="max_passes=0"), model.probe(max_passes=0):
        pass
    assert hooks_of(copy.deepcopy(model)) == hooks_of(model)
