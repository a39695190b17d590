"""Added tokens live in the expanded ends: the base's distribution over its own vocabulary stays."""

import pytest
import torch
from tests.laws.architectures import ARCHITECTURES, VOCAB, make_base
from tests.laws.models import (
    base_logits,
    batch,
    greedy,
    logits,
    make_expanded,
    make_trained,
    settings_of,
    train,
)
from transformers import AutoModelForCausalLM

from controlllm import collapse, expand, load_sidecar
from controlllm.common.errors import ModelError

NAMES = pytest.mark.parametrize("name", ARCHITECTURES)
ADDED = 3


def grown(name):
    model = make_expanded(name, "ends")
    model.resize_token_embeddings(VOCAB + ADDED)
    return model


def trained_with_added_tokens(name):
    """Trained on the batch with one of its tokens replaced by an added one."""
    model = grown(name).train()
    ids = batch()["input_ids"].clone()
    ids[0, 4] = VOCAB + 1
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.03)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@NAMES
def test_growing_keeps_the_logits_of_the_bases_vocabulary(name):
    seen = logits(grown(name))
    assert seen.shape[-1] == VOCAB + ADDED
    torch.testing.assert_close(seen[..., :VOCAB], base_logits(name), rtol=1e-5, atol=1e-5)
    assert torch.isfinite(seen).all()


@NAMES
def test_at_alpha_zero_added_tokens_cannot_be_predicted(name):
    model = trained_with_added_tokens(name)
    model.set_alpha(0.0)
    seen = logits(model)
    assert torch.equal(seen[..., :VOCAB], base_logits(name))
    assert seen[..., VOCAB:].isneginf().all()
    assert torch.equal(greedy(model), greedy(make_base(name)))
    with model.disable_expansion():
        assert torch.equal(logits(model), seen)


@NAMES
def test_a_base_of_few_bits_stays_it_beside_copies_in_float32(name):
    """As `training.bf16` has it: float32 for what trains, the base as it is, autocast around."""
    base = make_base(name).to(torch.bfloat16)
    model = expand(make_base(name).to(torch.bfloat16), **settings_of("ends"))
    model.resize_token_embeddings(VOCAB + ADDED)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(base)
        model.set_alpha(0.0)
        seen = logits(model)
        with model.disable_expansion():
            assert torch.equal(logits(model), seen)
    assert torch.equal(seen[..., :VOCAB], expected)
    for alpha in (0.0, 0.5, 1.0):  # Nor is the joined stream wider than the base's.
        model.set_alpha(alpha)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        joined = embedding(batch()["input_ids"]), embedding.weight, head.weight
        assert {one.dtype for one in joined} == {torch.bfloat16}


@NAMES
def test_added_rows_are_trained(name):
    model, start = trained_with_added_tokens(name), grown(name)
    rows = [m.get_input_embeddings().weight[VOCAB + 1] for m in (model, start)]
    assert not torch.allclose(*rows)


@NAMES
@pytest.mark.parametrize("form", ["full", "sidecar"])
def test_added_tokens_round_trip(name, form, tmp_path):
    model = trained_with_added_tokens(name)
    if form == "full":
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        model.save_sidecar(tmp_path / "sidecar")
        again = load_sidecar(make_base(name), tmp_path / "sidecar")
    ids = torch.tensor([[5, VOCAB, 7, VOCAB + 2]])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
        model.set_alpha(0.0), again.set_alpha(0.0)
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    again.set_alpha(None)
    train(again, steps=1)


@NAMES
def test_ties_hold(name):
    model = trained_with_added_tokens(name)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (embedding.expanded.weight is head.expanded.weight) == ARCHITECTURES[name].tied
    assert (embedding.pretrained.weight is head.pretrained.weight) == ARCHITECTURES[name].tied


@NAMES
def test_ties_hold_after_a_round_trip(name, tmp_path):
    trained_with_added_tokens(name).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (embedding.expanded.weight is head.expanded.weight) == ARCHITECTURES[name].tied
    assert (embedding.pretrained.weight is head.pretrained.weight) == ARCHITECTURES[name].tied


@NAMES
def test_collapsing_keeps_added_tokens(name, tmp_path):
    model = trained_with_added_tokens(name)
    collapsed = collapse(model)
    assert collapsed.config.get_text_config().vocab_size == VOCAB + ADDED
    collapsed.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert logits(again).shape[-1] == VOCAB + ADDED
    assert torch.equal(logits(again), logits(collapsed))
    with torch.no_grad():
        loss = again(input_ids=batch()["input_ids"], labels=batch()["input_ids"]).loss
    assert torch.isfinite(loss)


@NAMES
def test_unload_gives_the_base_with_its_own_vocabulary(name):
    base = trained_with_added_tokens(name).unload()
    assert base.config.to_dict() == make_base(name).config.to_dict()
    assert torch.equal(logits(base), base_logits(name))
    ids = batch()["input_ids"]
    with torch.no_grad():
        assert torch.isfinite(base(input_ids=ids, labels=ids).loss)


def test_resizing_without_expanded_ends_is_refused():
    model = make_trained("llama")
    before = logits(model)
    with pytest.raises(ModelError, match="expand_ends"):
        model.resize_token_embeddings(VOCAB + 1)
    assert torch.equal(logits(model), before)


def test_resizing_to_fewer_is_refused():
    with pytest.raises(ModelError, match="drop"):
        make_expanded("llama", "ends").resize_token_embeddings(VOCAB - 1)


def test_resizing_to_the_same_or_nothing_changes_nothing():
    model = make_expanded("llama", "ends")
    model.resize_token_embeddings(VOCAB)
    model.resize_token_embeddings()
    assert torch.equal(logits(model), base_logits("llama"))
    assert model.config.get_text_config().vocab_size == VOCAB


def test_growing_twice():
    model = grown("llama-tied")
    model.resize_token_embeddings(VOCAB + 7)
    assert logits(model).shape[-1] == VOCAB + 7
    model.set_alpha(0.0)
    assert torch.equal(logits(model)[..., :VOCAB], base_logits("llama-tied"))


def test_the_loss_at_alpha_zero_is_finite_and_the_bases():
    model = trained_with_added_tokens("llama")
    base, ids = make_base("llama"), batch()["input_ids"]
    with torch.no_grad(), model.disable_expansion():
        ours, theirs = (m(input_ids=ids, labels=ids).loss for m in (model, base))
    torch.testing.assert_close(ours, theirs)


def test_an_added_token_in_the_prompt_at_alpha_zero():
    model = trained_with_added_tokens("llama")
    model.set_alpha(0.0)
    with torch.no_grad():
        seen = model(input_ids=torch.tensor([[VOCAB + 2, 5]])).logits
    assert torch.isfinite(seen[..., :VOCAB]).all()
