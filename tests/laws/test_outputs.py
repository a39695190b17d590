"""Hidden states are the merged stream, L + 1; attentions the pretrained branch's, L of them."""

import pytest
import torch
from tests.laws.architectures import ARCHITECTURES, make_base
from tests.laws.models import VARIANTS, batch, make_expanded, make_trained

NAMES = pytest.mark.parametrize("name", ARCHITECTURES)
VARIANT = pytest.mark.parametrize("variant", VARIANTS)


@torch.no_grad()
def states(model, **options):
    return model(input_ids=batch()["input_ids"], output_hidden_states=True, **options).hidden_states


@NAMES
@VARIANT
def test_hidden_states_of_an_untrained_model_are_the_bases(name, variant):
    base, expanded = states(make_base(name)), states(make_expanded(name, variant))
    assert len(expanded) == len(base) == 5
    assert all(torch.equal(a, b) for a, b in zip(expanded, base, strict=True))


@NAMES
def test_hidden_states_are_the_merged_stream(name):
    model = make_trained(name)
    merged = {}
    for layer, block in model.blocks.items():
        block.register_forward_hook(
            lambda module, args, output, layer=layer: merged.__setitem__(
                layer, output[0] if isinstance(output, tuple) else output
            )
        )
    seen = states(model)
    assert len(seen) == 5
    inner = [layer for layer in merged if layer < 3]  # the last state has been normed
    assert inner
    assert all(torch.equal(seen[layer + 1], merged[layer]) for layer in inner)
    assert torch.equal(seen[-1], last_state(model))


@torch.no_grad()
def last_state(model):
    return model.get_decoder()(input_ids=batch()["input_ids"]).last_hidden_state


@NAMES
@VARIANT
def test_attentions_of_an_untrained_model_are_the_bases(name, variant):
    with torch.no_grad():
        ask = {"input_ids": batch()["input_ids"], "output_attentions": True}
        base = make_base(name, attn_implementation="eager")(**ask).attentions
        expanded = make_expanded(name, variant, attn_implementation="eager")(**ask).attentions
    assert len(expanded) == len(base) == 4
    assert all(torch.equal(a, b) for a, b in zip(expanded, base, strict=True))


@pytest.mark.parametrize("where", ["call", "config"])
def test_asking_by_call_or_by_config(where):
    model = make_trained("llama")
    model.config.output_hidden_states = where == "config"
    options = {"output_hidden_states": True} if where == "call" else {}
    with torch.no_grad():
        output = model(input_ids=batch()["input_ids"], **options)
    assert len(output.hidden_states) == 5


def test_nothing_is_given_that_was_not_asked():
    model = make_trained("llama")
    states(model)
    with torch.no_grad():
        output = model(input_ids=batch()["input_ids"])
    assert output.hidden_states is None
    assert output.attentions is None


def test_disabled_gives_the_bases_states():
    model = make_trained("llama")
    with model.disable_expansion():
        seen = states(model)
    base = states(make_base("llama"))
    assert all(torch.equal(a, b) for a, b in zip(seen, base, strict=True))


def test_generation_returns_states_of_every_step():
    model = make_trained("llama")
    output = model.generate(
        batch()["input_ids"],
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_hidden_states=True,
    )
    assert [len(step) for step in output.hidden_states] == [5, 5, 5]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_a_tuple_is_given_when_asked(training):
    model = make_trained("llama").train(training)
    wanted = model(**batch(), output_hidden_states=True)
    loss, logits, *_, hidden = model(**batch(), output_hidden_states=True, return_dict=False)
    assert torch.equal(loss, wanted.loss)
    assert torch.equal(logits, wanted.logits)
    assert len(hidden) == 5
    assert all(torch.equal(a, b) for a, b in zip(hidden, wanted.hidden_states, strict=True))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_logits_to_keep_and_inputs_embeds(name):
    model = make_trained(name)
    ids = batch()["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        last = model(input_ids=ids, logits_to_keep=1).logits
        embedded = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
    torch.testing.assert_close(last, whole[:, -1:])
    torch.testing.assert_close(embedded, whole)
