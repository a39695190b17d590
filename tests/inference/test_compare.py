"""Where base and tuned model part: worked out by hand, and equal to whole forward passes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from controlllm import ExpansionConfig, expand
from controlllm.common.errors import ModelError
from controlllm.inference import compare as module
from controlllm.inference.compare import mean_kl, text_pieces, token_changes

FIVE = 5  # the tuned head finds this token five times as likely as each other
VOCAB = 259


@pytest.fixture
def known(pico_llama: Callable) -> nn.Module:
    """Base: uniform. Tuned, at alpha 1: token `FIVE` has logit ln 5, all others 0.

    The block adds nothing and all embeddings are (1, 1, ...), so what the head sees is 1 in each
    dimension, and a logit is the sum of a row (32 values) of the head.
    """
    model = pico_llama(num_hidden_layers=1, tie_word_embeddings=False)
    layer = model.model.layers[0]
    with torch.no_grad():
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj, model.lm_head):
            part.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
    model = expand(model, ExpansionConfig(num_blocks=1, expand_ends=True))
    with torch.no_grad():
        model.lm_head.expanded.weight[FIVE] = math.log(5) / 32
    return model.eval()


def test_the_numbers_are_those_worked_out_by_hand(known, pico_tokenizer) -> None:
    known.set_alpha(1.0)
    changes = token_changes(known, pico_tokenizer, [1, FIVE, 7])
    # q = 5/263 for the one, 1/263 for 258 others; p = 1/259 for each.
    kl = (math.log(263 / (259 * 5)) + 258 * math.log(263 / 259)) / 259
    assert [change.id for change in changes] == [FIVE, 7]
    assert [change.kl for change in changes] == pytest.approx([kl, kl], rel=1e-4)
    assert changes[0].base_logprob == pytest.approx(-math.log(259), rel=1e-5)
    assert changes[0].change == pytest.approx(math.log(5 * 259 / 263), rel=1e-4)
    assert changes[1].change == pytest.approx(math.log(259 / 263), rel=1e-3)
    assert changes[0].tuned_choice.probability == pytest.approx(5 / 263, rel=1e-4)
    assert changes[0].tuned_choice.text == pico_tokenizer.decode([FIVE])
    assert mean_kl(changes) == pytest.approx(kl, rel=1e-4)


def test_the_dial_counts(known, pico_tokenizer) -> None:
    known.set_alpha(0.5)  # halfway between two logits: ln 5 / 2
    root = math.sqrt(5)
    kl = (math.log((258 + root) / 259) * 259 - math.log(root)) / 259
    assert token_changes(known, pico_tokenizer, [1, 9])[0].kl == pytest.approx(kl, rel=1e-3)
    known.set_alpha(0.0)
    (change,) = token_changes(known, pico_tokenizer, [1, 9])
    assert (change.kl, change.change) == (0.0, 0.0)


@pytest.fixture
def tuned(pico_llama: Callable) -> nn.Module:
    model = expand(pico_llama(), num_blocks=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in model.trainable_parameter_groups()["expanded"]:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def test_parts_equal_one_forward_pass(tuned, pico_tokenizer, monkeypatch) -> None:
    ids = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        logprobs = tuned(torch.tensor([ids])).logits[0].log_softmax(-1)
        with tuned.disable_expansion():
            base = tuned(torch.tensor([ids])).logits[0].log_softmax(-1)
    kl = (base.exp() * (base - logprobs)).sum(-1)
    monkeypatch.setattr(module, "PART_TOKENS", 4)
    monkeypatch.setattr(module, "PART_POSITIONS", 7)
    steps: list[int] = []
    changes = token_changes(tuned, pico_tokenizer, ids, start=11, step=lambda: steps.append(1))
    assert len(changes) == len(ids) - 11
    assert len(steps) == 2 * 3 + 5
    for place, change in enumerate(changes, 11):
        assert change.id == ids[place]
        assert change.kl == pytest.approx(kl[place - 1].item(), rel=1e-3, abs=1e-5)
        assert change.tuned_logprob == pytest.approx(logprobs[place - 1, ids[place]].item(), 1e-3)
        assert change.base_logprob == pytest.approx(base[place - 1, ids[place]].item(), 1e-3)
        assert change.base_choice.probability == pytest.approx(
            base[place - 1].exp().max().item(), 1e-3
        )


def test_only_some_positions_have_logits_at_a_time(tuned, pico_tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(module, "PART_POSITIONS", 5)
    seen: list[int] = []
    tuned.base.lm_head.register_forward_hook(lambda *call: seen.append(call[2].shape[1]))
    token_changes(tuned, pico_tokenizer, [*range(3, 43)], start=20)
    assert max(seen) == 5


def test_work_can_be_ended(tuned, pico_tokenizer) -> None:
    def leave() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        token_changes(tuned, pico_tokenizer, [1, 5, 6], step=leave)


def test_a_model_without_a_base_is_refused(pico_llama: Callable, pico_tokenizer) -> None:
    with pytest.raises(ModelError, match="no base to compare"):
        token_changes(pico_llama(), pico_tokenizer, [1, 5])


@pytest.mark.parametrize("text", ["", "plain words", "né 漢字 🙂 end", "🙂"])
def test_pieces_joined_are_the_text(pico_tokenizer, text: str) -> None:
    ids = pico_tokenizer(text, add_special_tokens=False).input_ids
    pieces = text_pieces(pico_tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    assert "".join(text_pieces(pico_tokenizer, [1, *ids], start=1)) == text


def test_half_a_character_is_shown_as_such(pico_tokenizer) -> None:
    half = pico_tokenizer("🙂", add_special_tokens=False).input_ids[:2]
    assert "".join(text_pieces(pico_tokenizer, half)) == "\ufffd"
    assert len(text_pieces(pico_tokenizer, half)) == 2


def test_without_tokens_there_is_no_mean() -> None:
    assert math.isnan(mean_kl([]))
