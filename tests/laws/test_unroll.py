"""A stack as the plain, deeper architecture: bit for bit, in every architecture."""

import subprocess
import sys

import pytest
import torch
from tests.laws.architectures import ARCHITECTURES, make_base
from tests.laws.models import base_logits, batch, greedy, logits, make_expanded, make_trained, train
from transformers import AutoModelForCausalLM

from controlllm import collapse, expand
from controlllm.common.errors import ModelError
from controlllm.expansion import unroll

NAMES = pytest.mark.parametrize("name", ARCHITECTURES)


@NAMES
def test_unrolled_it_is_the_same_function(name):
    model = make_trained(name, "stack")
    expected, texts = logits(model), greedy(model)
    flat = unroll(model)
    assert type(flat) is type(make_base(name))
    assert flat.get_decoder().config.num_hidden_layers == 6
    assert torch.equal(logits(flat), expected)
    assert torch.equal(greedy(flat), texts)
    assert torch.equal(logits(model), expected)  # the expanded one is left alone


@pytest.mark.slow
@NAMES
def test_saved_and_loaded_it_is_the_same_function(name, tmp_path):
    model = make_trained(name, "stack")
    expected, texts = logits(model), greedy(model)
    unroll(model).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), expected)
    assert torch.equal(greedy(again), texts)


def test_blocks_at_alpha_0_lose_their_copies():
    model = make_trained("gemma3", "stack")
    first, second = model.blocks
    model.set_alpha({first: 0.0, second: 1.0})
    flat = unroll(model)
    assert flat.config.num_hidden_layers == 5
    kinds = ["sliding_attention", "full_attention"] * 2
    assert flat.config.layer_types == [*kinds[: second + 1], kinds[second], *kinds[second + 1 :]]
    assert torch.equal(logits(flat), logits(model))
    model.set_alpha(0.0)
    assert torch.equal(logits(unroll(model)), base_logits("gemma3"))


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2", "gpt-neox"])
def test_expanded_ends_are_folded_at_their_alpha(name):
    model = train(expand(make_base(name), structure="stack", num_blocks=2, expand_ends=True))
    model.set_alpha({-1: 0.3})
    torch.testing.assert_close(logits(unroll(model)), logits(model), rtol=1e-4, atol=1e-4)
    ends = unroll(model).get_input_embeddings().weight
    assert not torch.equal(ends, make_base(name).get_input_embeddings().weight)


def test_added_tokens_are_kept():
    model = expand(make_base("llama-tied"), structure="stack", num_blocks=2, expand_ends=True)
    model.resize_token_embeddings(70)
    flat = unroll(train(model))
    assert flat.config.vocab_size == 70
    torch.testing.assert_close(logits(flat), logits(model), rtol=1e-4, atol=1e-4)


def test_what_is_not_exact_is_refused():
    for variant in ("concat", "hybrid"):
        with pytest.raises(ModelError, match=r"beside their blocks.*'collapsed'"):
            unroll(make_expanded("llama", variant))
    model = make_trained("llama", "stack")
    model.set_alpha(0.5)
    with pytest.raises(ModelError, match=r"stands at 0.5 for layers \[1, 3\].*only 0"):
        unroll(model)


@pytest.mark.parametrize("variant", ["stack", "ends"])
def test_one_alpha_per_row_is_refused(variant):
    model = make_trained("llama", variant)
    model.set_alpha(torch.tensor([0.0, 1.0]))
    for merged in (unroll, collapse) if variant == "stack" else (collapse,):
        with pytest.raises(ModelError, match="one alpha per row"):
            merged(model)


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, r"build layer 2\.attn.*scaling"),
        ("qwen3-moe", {"mlp_only_layers": [1]}, r"build layer 2\.mlp"),
    ],
)
def test_an_architecture_that_counts_its_layers_is_refused(name, settings, message):
    model = train(expand(_fresh(name, settings), structure="stack", num_blocks=2))
    with pytest.raises(ModelError, match=message):
        unroll(model)


def test_a_block_that_computes_by_its_number_is_refused():
    base = make_base("llama")
    base.model.layers[1].register_forward_hook(lambda block, _, x: x + block.self_attn.layer_idx)
    model = train(expand(base, structure="stack", num_blocks=2))
    with pytest.raises(ModelError, match="depends on its number"):
        unroll(model)


def _fresh(name, settings):
    config = make_base(name).config
    for key, value in settings.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


LOAD = """
import sys
from transformers import AutoModelForCausalLM
import torch
sys.modules["controlllm"] = None  # Importing it is an error.
expected = torch.load(sys.argv[2], weights_only=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    logits = model(expected["ids"]).logits
assert torch.equal(logits, expected["logits"])
print(type(model).__name__, model.config.num_hidden_layers)
"""


@pytest.mark.slow
def test_a_process_without_this_package_loads_it(tmp_path):
    from controlllm.checkpoint import export

    model = make_trained("llama", "stack")
    folder = export(model, tmp_path / "unrolled", "unrolled")
    torch.save({"ids": batch()["input_ids"], "logits": logits(model)}, tmp_path / "expected.pt")
    words = [sys.executable, "-c", LOAD, str(folder), str(tmp_path / "expected.pt")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["LlamaForCausalLM", "6"]
    assert "as trained" in (folder / "README.md").read_text()
