"""What cannot be expanded is refused with a reason, and left untouched."""

import copy

import pytest
import torch
from tests.laws.architectures import make_base
from tests.laws.models import base_logits, logits, make_expanded
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from controlllm import ExpansionConfig, expand
from controlllm.common.errors import ConfigError, ModelError


def tiny_t5():
    config = T5Config(
        vocab_size=20,
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def plain_module():
    return nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8))


def no_blocks():
    """A Hugging Face model whose list of blocks is gone."""
    model = make_base("llama")
    model.model.layers = nn.Sequential(*model.model.layers)
    return model


def one_block():
    """A part of a model."""
    return make_base("llama").model.layers[0]


def untouched(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "make, message",
    [
        (tiny_t5, "encoder-decoder"),
        (plain_module, "no Hugging Face model"),
        (one_block, "no Hugging Face model"),
        (no_blocks, "no list of decoder blocks"),
    ],
)
def test_what_is_no_decoder_is_refused(make, message):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=message):
        expand(model, num_blocks=1)
    untouched(model, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BertModel(
            BertConfig(
                vocab_size=20,
                hidden_size=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=8,
            )
        ),
        lambda: ViTModel(
            ViTConfig(
                hidden_size=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=8,
                image_size=8,
                patch_size=4,
            )
        ),
    ],
    ids=["bert", "vit"],
)
def test_encoders_are_refused(make):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError):
        expand(model, num_blocks=1)
    untouched(model, before)


def test_an_expanded_model_is_not_expanded_again():
    model = make_expanded("llama")
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    with pytest.raises(ModelError, match="expanded already"):
        expand(model, num_blocks=1)
    with pytest.raises(ModelError, match="expanded already"):
        expand(model.base, num_blocks=1)
    assert torch.equal(logits(model), base_logits("llama"))
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == frozen
    assert model.config.get_text_config().num_hidden_layers == 6


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"num_blocks": 5}, ConfigError, "only 4 layers"),
        ({"layers": [1, 4]}, ConfigError, r"\[4\] out of range"),
        ({"layers": [-1]}, ConfigError, "out of range"),
        ({"structure": "hybrid", "num_blocks": 3}, ConfigError, "even"),
        (
            {"structure": "stack", "residual_projections": ["no_such"]},
            ModelError,
            "residual_projections",
        ),
    ],
)
def test_a_plan_that_does_not_fit_leaves_the_model_untouched(settings, error, message):
    model = make_base("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        expand(model, **settings)
    untouched(model, before)
    assert model.config.num_hidden_layers == 4
    assert torch.equal(logits(expand(model)), base_logits("llama"))


def test_ends_that_are_no_plain_modules_are_refused():
    model = make_base("llama")
    model.lm_head = nn.Sequential(nn.Linear(32, 61, bias=False))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="LM head"):
        expand(model, expand_ends=True)
    untouched(model, before)


def test_attention_maps_need_an_attention_module():
    model = make_base("llama")
    before = copy.deepcopy(model.state_dict())
    for layer in model.model.layers:
        layer.mixer = layer.self_attn
        del layer.self_attn
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="divergence='attention'"):
        expand(model, divergence="attention")
    untouched(model, before)


def test_a_config_and_its_fields_together_are_refused():
    with pytest.raises(ConfigError, match="num_blocks"):
        expand(make_base("llama"), ExpansionConfig(), num_blocks=2)


def test_a_misspelt_field_is_named_with_its_neighbour():
    with pytest.raises(ConfigError, match="Did you mean 'num_blocks'"):
        expand(make_base("llama"), num_block=2)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), "half", True])
def test_a_dial_out_of_range_is_refused(bad):
    model = make_expanded("llama")
    with pytest.raises(ConfigError, match="dial"):
        model.set_alpha(bad)
    assert model.alphas() == {1: 0.5, 3: 0.5}
    assert model.expansion.dial is None


def test_a_dial_in_the_config_for_a_layer_that_is_not_expanded_is_refused():
    base = make_base("llama")
    with pytest.raises(ConfigError, match=r"\[2\]"):
        expand(base, num_blocks=2, dial={1: 0.1, 2: 0.1})
    assert torch.equal(logits(expand(base)), base_logits("llama"))


def test_a_dial_for_a_layer_that_is_not_expanded_is_refused():
    model = make_expanded("llama")
    with pytest.raises(ConfigError, match=r"\[2\]"):
        model.set_alpha({1: 0.1, 2: 0.1})
    assert model.alphas() == {1: 0.5, 3: 0.5}
    assert model.expansion.dial is None
