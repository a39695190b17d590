"""An adapter computes what the expanded model computes, bit for bit, saved under any name."""

import pytest
import torch
from peft import PeftModel
from tests.integrations.peft.making import make_adapted
from tests.laws.architectures import ARCHITECTURES, make_base
from tests.laws.models import (
    INTERPOLATORS,
    base_logits,
    batch,
    greedy,
    logits,
    make_expanded,
    train,
)

from controlllm import load_sidecar
from controlllm.common.errors import ModelError
from controlllm.expansion.files.records import read_sidecar_config
from controlllm.expansion.files.sidecar import sidecar_tensors
from controlllm.integrations.peft import adapter_to_sidecar, adapters_of, sidecar_to_adapter

CASES = [(name, "ends") for name in ARCHITECTURES]
CASES += [(name, "concat") for name in ("llama-tied", "qwen2-windowed", "gpt2", "qwen3-moe")]
CASES += [("llama", variant) for variant in ("stack", "hybrid", *INTERPOLATORS)]

FORMS = [(name, "ends") for name in ("llama", "llama-tied", "gpt-neox", "gpt2", "mixtral")]
FORMS += [("llama", variant) for variant in ("concat", "hybrid", "dlerp", "prog")]


@pytest.mark.parametrize("name, variant", CASES)
def test_an_adapter_is_the_expanded_model(name, variant, tmp_path):
    model, expanded = make_adapted(name, variant), make_expanded(name, variant)
    assert torch.equal(logits(model), base_logits(name))
    train(model)
    train(expanded)
    wanted = logits(expanded)
    assert not torch.equal(wanted, base_logits(name))
    assert torch.equal(logits(model), wanted)
    with model.disable_adapter():
        assert torch.equal(logits(model), base_logits(name))

    model.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(make_base(name), tmp_path / "adapter", adapter_name="other")
    assert torch.equal(logits(again), wanted)
    native = make_base(name)
    native.load_adapter(str(tmp_path / "adapter"), adapter_name="third")
    assert torch.equal(logits(native), wanted)

    tokens = greedy(expanded)
    assert torch.equal(greedy(again), tokens)
    assert torch.equal(greedy(again, use_cache=False), tokens)
    assert torch.equal(greedy(native, cache_implementation="static"), tokens)


@pytest.mark.parametrize("name, variant", FORMS)
def test_sidecars_become_adapters_and_back(name, variant, tmp_path):
    expanded = train(make_expanded(name, variant))
    expanded.set_alpha(0.25)
    expanded.save_sidecar(tmp_path / "sidecar")
    sidecar_to_adapter(tmp_path / "sidecar", tmp_path / "adapter")
    model = PeftModel.from_pretrained(make_base(name), tmp_path / "adapter")
    assert torch.equal(logits(model), logits(expanded))

    adapter_to_sidecar(tmp_path / "adapter", tmp_path / "back")
    for file in ("sidecar.safetensors", "README.md"):
        assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "sidecar" / file).read_bytes()
    configs = [read_sidecar_config(tmp_path / folder) for folder in ("back", "sidecar")]
    assert configs[0] == configs[1]
    again = load_sidecar(make_base(name), tmp_path / "back")
    assert torch.equal(logits(again), logits(expanded))
    ours, theirs = adapters_of(model).require_active().tensors(), sidecar_tensors(again)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("wanted", [True, [0, -1]], ids=str)
def test_hidden_states_are_the_merged_stream(wanted):
    model, expanded = train(make_adapted()), train(make_expanded("llama"))
    inputs = {"input_ids": batch()["input_ids"], "output_hidden_states": wanted}
    ours, theirs = model(**inputs).hidden_states, expanded(**inputs).hidden_states
    assert len(ours) == len(theirs) == 5
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_attentions_are_one_per_position():
    model = train(make_adapted())
    model.get_base_model().set_attn_implementation("eager")
    output = model(input_ids=batch()["input_ids"], output_attentions=True)
    assert len(output.attentions) == 4


def test_a_tuple_is_a_tuple():
    model = make_adapted().train()
    output = model(**batch(), return_dict=False)
    assert isinstance(output, tuple)
    assert torch.equal(output[0], model(**batch()).loss)


def test_the_cache_of_a_pass_that_failed_is_refused():
    model = make_adapted()
    one = batch()["input_ids"][:, :1]
    with torch.no_grad():
        cache = model(input_ids=one, use_cache=True).past_key_values

    def fail(*args):
        raise RuntimeError("out of memory")

    hook = model.get_base_model().get_decoder().norm.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(input_ids=one, past_key_values=cache)
    hook.remove()
    with pytest.raises(ModelError, match="has failed"):
        model(input_ids=one, past_key_values=cache)
