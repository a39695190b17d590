import pytest
import torch

from controlllm import expand
from controlllm.expansion.files.fingerprint import fingerprint


def test_it_is_sixteen_hex_digits_and_stable(pico_llama):
    first, second = fingerprint(pico_llama()), fingerprint(pico_llama())
    assert first == second
    assert len(first) == 16 and int(first, 16) >= 0


def test_any_one_changed_value_changes_it(pico_llama):
    model = pico_llama(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, vocab_size=11)
    before, seen = fingerprint(model), set()
    for parameter in model.parameters():
        for position in (0, parameter.numel() // 2, parameter.numel() - 1):
            flat = parameter.data.view(-1)
            kept = flat[position].item()
            flat[position] = kept + 1.0
            seen.add(fingerprint(model))
            flat[position] = kept
    assert before not in seen
    assert len(seen) == 3 * len(list(model.parameters()))
    assert fingerprint(model) == before


def test_swapped_rows_change_it(pico_llama):
    model = pico_llama()
    before = fingerprint(model)
    weight = model.model.layers[0].mlp.up_proj.weight.data
    weight[[0, 1]] = weight[[1, 0]]
    assert fingerprint(model) != before


def test_a_bfloat16_copy_has_the_same(pico_llama):
    assert fingerprint(pico_llama().to(torch.bfloat16)) == fingerprint(pico_llama())


@pytest.mark.parametrize("settings", [{}, {"expand_ends": True}, {"structure": "stack"}], ids=str)
def test_an_expanded_model_has_its_bases(pico_llama, settings):
    base = pico_llama()
    before = fingerprint(base)
    model = expand(base, num_blocks=2, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert fingerprint(model) == before
    assert fingerprint(model.unload()) == before


def test_tied_weights_count_once(pico_llama):
    model = pico_llama(tie_word_embeddings=True)
    assert fingerprint(expand(model, num_blocks=1)) == fingerprint(
        pico_llama(tie_word_embeddings=True)
    )
    assert fingerprint(model) != fingerprint(pico_llama(tie_word_embeddings=False))
