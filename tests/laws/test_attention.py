"""Attention implementations are chosen as for the base, before or after expansion, and agree."""

import pytest
import torch
from tests.laws.architectures import ARCHITECTURES, make_base
from tests.laws.models import batch, greedy, logits, make_trained, settings_of, train

from controlllm import expand

NAMES = pytest.mark.parametrize("name", ARCHITECTURES)
EAGER_ONLY = {"gemma2"}  # sdpa cannot cap attention logits: another function, or refused


@NAMES
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_switching_reaches_both_branches(name, implementation):
    model = make_trained(name)
    if not accepts(make_base(name), implementation):
        assert not accepts(model, implementation)
        return
    model.set_attn_implementation(implementation)
    used = {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")}
    assert used == {implementation}


def accepts(model, implementation):
    try:
        model.set_attn_implementation(implementation)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in EAGER_ONLY])
def test_eager_is_sdpa(name):
    model = make_trained(name)
    model.set_attn_implementation("eager")
    eager = logits(model)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits(model), eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_flex_is_sdpa(name):
    model = make_trained(name)
    expected = logits(model)
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@NAMES
def test_chosen_before_expansion(name):
    model = expand(make_base(name, attn_implementation="eager"), **settings_of("concat"))
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model), logits(make_base(name, attn_implementation="eager")))
    assert torch.equal(greedy(train(model)), greedy(model, use_cache=False))


def test_chosen_at_loading(tmp_path):
    from transformers import AutoModelForCausalLM

    model = make_trained("llama")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    used = {m.config._attn_implementation for m in again.modules() if hasattr(m, "config")}
    assert used == {"eager"}
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)


@NAMES
def test_a_divergence_of_attention_maps(name):
    model = expand(
        make_base(name, attn_implementation="eager"), num_blocks=2, divergence="attention"
    )
    train(model)
    assert all(value > 0 for value in model.divergence.values())


def test_a_divergence_of_attention_maps_needs_maps():
    from controlllm.common.errors import ModelError

    model = expand(make_base("llama"), num_blocks=2, divergence="attention").train()
    with pytest.raises(ModelError, match="eager"):
        model(**batch())


def test_a_registered_implementation_serves_both_branches():
    """transformers' AttentionInterface: a new name is used by every branch, nothing is patched."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen = []

    def watched(module, *args, **kwargs):
        seen.append(module.layer_idx)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("watched", watched)
    model = make_trained("llama")
    expected = logits(model)
    model.set_attn_implementation("watched")
    # Without a mask function of its own the implementation gets no mask: causal by itself.
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert seen == [0, 1, 4, 2, 3, 5]
