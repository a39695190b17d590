"""Generation with a cache gives what it gives without: each expanded block has its own slot."""

import pytest
import torch
from tests.laws.architectures import ARCHITECTURES, VOCAB, make_base
from tests.laws.models import MATRIX, greedy, make_expanded, make_trained, prompts

ALL = pytest.mark.parametrize("name, variant", MATRIX)


@ALL
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cached_is_uncached(name, variant, kind):
    model = make_trained(name, variant)
    options = {"output_logits": True, "return_dict_in_generate": True}
    cached = greedy(model, cache_implementation=kind, **options)
    without = greedy(model, use_cache=False, **options)
    assert torch.equal(cached.sequences, without.sequences)
    ours, theirs = torch.stack(cached.logits), torch.stack(without.logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_untrained_generates_as_the_base(name):
    model = make_expanded(name, "ends")
    assert torch.equal(greedy(model), greedy(make_base(name)))
    trained = make_trained(name, "hybrid")
    with trained.disable_expansion():
        assert torch.equal(greedy(trained), greedy(make_base(name)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sampling_with_and_without_cache(name):
    model = make_trained(name)
    seen = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        seen.append(greedy(model, do_sample=True, use_cache=use_cache))
    assert torch.equal(*seen)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_beam_search_with_and_without_cache(name):
    model = make_trained(name)
    beams = {"num_beams": 3, "num_return_sequences": 2}
    assert torch.equal(greedy(model, **beams), greedy(model, **beams, use_cache=False))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_padded_on_the_left_continue_as_alone(name):
    model = make_trained(name)
    row = prompts()[:1, 2:]
    padded = torch.cat([prompts()[:1], torch.cat([torch.zeros(1, 2, dtype=torch.long), row], 1)])
    mask = torch.ones_like(padded)
    mask[1, :2] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(padded, attention_mask=mask, **options)
    alone = model.generate(row, **options)
    assert torch.equal(together[1, 2:], alone[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cache_holds_one_slot_per_branch(name):
    model = make_trained(name, "concat")
    with torch.no_grad():
        cache = model(input_ids=prompts(), use_cache=True).past_key_values
    filled = [layer.keys for layer in cache.layers]
    assert len(filled) == model.config.get_text_config().num_hidden_layers == 6
    for block, own in zip(model.blocks.values(), filled[4:], strict=True):
        assert own.shape == filled[block.layer].shape
        assert not torch.equal(own, filled[block.layer])


def test_the_dial_turns_between_two_generations():
    model = make_trained("llama")
    trained = greedy(model)
    model.set_alpha(0.0)
    assert torch.equal(greedy(model), greedy(make_base("llama")))
    model.set_alpha(None)
    assert torch.equal(greedy(model), trained)


def test_the_dial_turns_inside_one_cache_where_both_branches_run():
    model = make_trained("llama")
    ids = prompts()
    with torch.no_grad():
        model.set_alpha(0.2)
        cache = model(input_ids=ids, use_cache=True).past_key_values
        model.set_alpha(torch.tensor([0.0, 1.0]))
        model(input_ids=ids[:, :1], past_key_values=cache)
    assert [layer.get_seq_length() for layer in cache.layers] == [7] * 6


def test_generation_continues_from_embeddings():
    model = make_trained("llama")
    embedded = model.get_input_embeddings()(prompts())
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    new = model.generate(inputs_embeds=embedded, **options)
    assert torch.equal(new, model.generate(prompts(), **options)[:, 6:])


def test_generation_computes_no_more_logits_than_it_reads():
    model = make_trained("llama")
    widths = []
    model.lm_head.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    greedy(model)
    assert widths == [1] * 8


def test_a_wrong_generation_argument_is_refused():
    with pytest.raises(ValueError, match="no_such_option"):
        make_trained("llama").generate(prompts(), no_such_option=1)


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_the_head_of_few_tokens_makes_no_joined_weight(name, monkeypatch):
    model = make_trained(name, "ends")
    model.resize_token_embeddings(VOCAB + 2)
    head = model._expansion.ends["head"]
    x_BTD = torch.randn(1, 3, head.pretrained.in_features)
    by_weight = head(x_BTD)
    monkeypatch.setattr(type(head), "weight", None)
    with torch.no_grad():
        torch.testing.assert_close(head(x_BTD), by_weight, rtol=1e-5, atol=1e-6)
        with pytest.raises(TypeError):
            head(x_BTD.expand(6, 3, -1))  # 18 tokens
