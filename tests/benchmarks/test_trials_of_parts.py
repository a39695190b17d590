"""Trials of the study `parts`: what is copied, and what is turned after training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmarks.study.trials import alpha_by_part, filter, mlp_copies
from torch import Tensor
from transformers import PreTrainedModel

from controlllm.evaluate.forgetting.averaging import average_weights, averager
from controlllm.evaluate.forgetting.dial import Dial
from controlllm.evaluate.forgetting.reference import Reference
from controlllm.evaluate.forgetting.retention import measure_settings
from controlllm.expansion import ControlLLMForCausalLM, ExpansionConfig, expand
from controlllm.expansion.files.sidecar import sidecar_tensors
from controlllm.expansion.method.plan import ENDS

Make = Callable[..., PreTrainedModel]


def batch(seed: int) -> dict[str, Tensor]:
    ids = torch.randint(3, 200, (4, 24), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


CHOSEN = {"new": [batch(1)], "own": [batch(2)]}


def trained(base: PreTrainedModel) -> ControlLLMForCausalLM:
    """An expanded model whose trained tensors are no longer what they began as."""
    settings = ExpansionConfig(layers=[0, 2], expand_ends=True, divergence="nmse")
    model = expand(base, settings)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in sidecar_tensors(model).values():
            tensor.add_(0.02 * torch.randn(tensor.shape, generator=chance))
    return model.eval()


def dial_of(model: Any) -> Dial:
    return Dial(model, model.set_alpha, Reference(model), "alpha")


@torch.no_grad()
def logits(model: Any) -> Tensor:
    ids: Tensor = model(input_ids=batch(3)["input_ids"]).logits
    return ids


def test_copies_of_the_mlp_are_the_base_at_first_and_at_alpha_0(pico_llama: Make) -> None:
    want = logits(pico_llama())
    with mlp_copies.Trial().training():
        fresh = expand(pico_llama(), ExpansionConfig(layers=[1, 3])).eval()
        model = trained(pico_llama())
    assert torch.equal(logits(fresh), want)
    assert not torch.equal(logits(model), want)
    model.set_alpha(0)
    assert torch.equal(logits(model), want)
    whole = expand(pico_llama(), ExpansionConfig(layers=[1, 3]))
    assert any("self_attn" in name for name in sidecar_tensors(whole))  # as before, outside


def test_copies_of_the_mlp_are_what_they_say(pico_llama: Make) -> None:
    with mlp_copies.Trial().training():
        model = trained(pico_llama())
    of_blocks = [name for name in sidecar_tensors(model) if ".layers." in name]
    parts = ["mlp", "mlp", "mlp", "post_attention", "logit"] * 2
    assert all(part in name for name, part in zip(of_blocks, parts, strict=True))
    block, x = model.blocks[2], torch.randn(1, 5, 32)
    angles = model.get_decoder().rotary_emb(x, torch.arange(5)[None])
    frozen, own = block.pretrained, block.expanded
    with torch.no_grad():
        h = x + frozen.self_attn(frozen.input_layernorm(x), position_embeddings=angles)[0]
        want = h + own.mlp(own.post_attention_layernorm(h))
        model.set_alpha(0.5)
        got = block(x, position_embeddings=angles)
        base = frozen(x, position_embeddings=angles)
        model.set_alpha(1)
        alone = block(x, position_embeddings=angles)
    torch.testing.assert_close(got, (base + want) / 2)
    torch.testing.assert_close(alone, want)


def test_copies_of_the_mlp_write_nothing_into_the_cache(pico_llama: Make) -> None:
    with mlp_copies.Trial().training():
        model = trained(pico_llama())
    ids = batch(1)["input_ids"]
    told = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached, plain = (model.generate(ids, **told, use_cache=c) for c in (True, False))
    assert torch.equal(cached, plain)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    assert [layer.is_initialized for layer in cache.layers][4:] in ([], [False, False])


def test_a_filter_solves_what_it_says() -> None:
    chance = torch.Generator().manual_seed(0)
    layer, twin = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)
    new, own = (torch.randn(9, 6, generator=chance).double() for _ in range(2))
    new, own = new.T @ new, own.T @ own
    delta = (layer.weight - twin.weight).double().detach()
    for strength in (0.0, 2.5, torch.tensor([[0.5], [1.0], [4.0]]).double()):
        changed = torch.nn.Linear(6, 3)
        changed.load_state_dict(layer.state_dict())
        filter.put(changed, twin, new, own, strength)
        each = torch.as_tensor(strength).expand(3, 1)
        want = [d @ new @ torch.linalg.inv(new + s * own) for d, s in zip(delta, each, strict=True)]
        torch.testing.assert_close(
            (changed.weight - twin.weight).double(), torch.stack(want), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_filter_forgets_less_at_the_same_alpha(pico_llama: Make, ends: bool, tied: bool) -> None:
    model = trained(pico_llama(tie_word_embeddings=tied))
    before = {name: tensor.clone() for name, tensor in sidecar_tensors(model).items()}
    turns = [lambda: model.set_alpha(0.5)]
    (kl,) = measure_settings(model, CHOSEN["own"], turns)
    filter.Trial(strength=3.0, ends=ends).dial(dial_of(model), CHOSEN)
    (less,) = measure_settings(model, CHOSEN["own"], turns)
    assert less.kl < kl.kl
    changed = {n for n, t in sidecar_tensors(model).items() if not torch.equal(t, before[n])}
    assert ("model.embed_tokens.expanded.weight" in changed) == ends
    assert not any("norm" in name for name in changed)


def test_alphas_by_part_learn_no_less_where_they_are_chosen(pico_llama: Make) -> None:
    model = trained(pico_llama())
    dial = dial_of(model)
    search = alpha_by_part.Search(dial, CHOSEN, 0.01)
    one = search.loss({0: 1.0, 2: 1.0, ENDS: 1.0})
    best = search.run()
    assert set(best) == {0, 2, ENDS}
    assert search.loss(best) <= one + 1e-3
    turned = alpha_by_part.Trial(0.01).dial(dial, CHOSEN)
    turned.turn(0)
    assert torch.equal(logits(model), logits(pico_llama()))


def test_an_average_by_part_lies_between_base_and_tuned_model(pico_llama: Make) -> None:
    base, tuned = pico_llama(), pico_llama()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=chance))
    mixed = average_weights(base, tuned, 1.0)
    dial = Dial(mixed, averager(base, tuned, mixed), Reference(mixed, copy=base), "weight")
    parts, turn = alpha_by_part.parts_of(dial)
    assert parts == [ENDS, *range(base.config.num_hidden_layers)]
    turn(dict.fromkeys(parts, 0.25))
    equal = logits(mixed)
    dial.turn(0.25)
    assert torch.equal(logits(mixed), equal)
    turn(dict.fromkeys(parts, 0.0) | {1: 1.0})
    named = zip(mixed.named_parameters(), base.parameters(), tuned.parameters(), strict=True)
    for (name, parameter), before, after in named:
        assert torch.equal(parameter, after if ".1." in name else before)
    turned = alpha_by_part.Trial(0.01).dial(dial, CHOSEN)
    turned.turn(None)
    assert torch.equal(logits(mixed), logits(tuned))
