"""What is written comes back exactly: whole models, sidecars, and without the package installed."""

import os
import subprocess
import sys

import pytest
import torch
from tests.laws.architectures import ARCHITECTURES, make_base
from tests.laws.models import (
    INTERPOLATORS,
    MATRIX,
    base_logits,
    batch,
    greedy,
    logits,
    make_expanded,
    make_trained,
    prompts,
    train,
)
from tests.trust.schemas_helpers import edit_tensors
from transformers import AutoConfig, AutoModelForCausalLM

from controlllm import ControlLLMForCausalLM, ExpansionConfig, expand, load_sidecar
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.checksums import resealed

ALL = pytest.mark.parametrize("name, variant", MATRIX)


@ALL
def test_save_pretrained_round_trip(name, variant, tmp_path):
    model = make_trained(name, variant)
    model.save_pretrained(tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert type(again) is ControlLLMForCausalLM
    assert not again.training
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(greedy(again), greedy(model))
    assert again.expansion == model.expansion
    assert again.config.base == model.config.base
    text, text_again = model.config.text_config.to_dict(), again.config.text_config.to_dict()
    assert text_again == text | {"dtype": "float32"}
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert [(n, p.requires_grad) for n, p in ours.items()] == [
        (n, p.requires_grad) for n, p in theirs.items()
    ]
    with again.disable_expansion():
        assert torch.equal(logits(again), base_logits(name))


@ALL
def test_sidecar_round_trip(name, variant, tmp_path):
    model = make_trained(name, variant)
    model.save_sidecar(tmp_path / "sidecar")
    again = load_sidecar(make_base(name), tmp_path / "sidecar")
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(greedy(again), greedy(model))
    names = {n.removeprefix("base.") for n, p in model.named_parameters() if p.requires_grad}
    assert names <= sidecar_names(tmp_path / "sidecar")
    assert not [n for n in sidecar_names(tmp_path / "sidecar") if "pretrained" in n.split(".")]


def sidecar_names(folder):
    from safetensors import safe_open

    with safe_open(folder / "sidecar.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_model_unloads_to_its_base(name, tmp_path):
    make_trained(name, "ends").save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path).unload()
    assert type(base) is type(make_base(name))
    assert torch.equal(logits(base), base_logits(name))
    base.save_pretrained(tmp_path / "base")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(again), base_logits(name))


def test_training_goes_on_after_a_round_trip(tmp_path):
    model = make_trained("llama")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for one in (model, again):
        train(one, steps=1)
    assert torch.equal(logits(again), logits(model))


def test_the_dial_and_the_measured_alphas_are_kept(tmp_path):
    model = make_trained("llama", "dlerp")
    with model.record_alpha():
        logits(model)
    model.set_alpha(0.25)
    model.save_pretrained(tmp_path / "full")
    model.save_sidecar(tmp_path / "sidecar")
    for again in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "full"),
        load_sidecar(make_base("llama"), tmp_path / "sidecar"),
    ):
        assert again.expansion == model.expansion
        assert again.expansion.mean_alpha.keys() == model.blocks.keys()
        assert torch.equal(logits(again), logits(model))
        assert again.alphas() == model.alphas()
        assert all(0 < alpha < 0.25 for alpha in again.alphas().values())  # it multiplies the gate
        again.set_alpha(None)
        assert not torch.equal(logits(again), logits(model))


def test_a_dial_by_layer_survives_json(tmp_path):
    model = make_trained("llama")
    first, second = model.blocks
    model.set_alpha({first: 0.1})
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.alphas() == {first: 0.1, second: 0.5}
    assert torch.equal(logits(again), logits(model))


def test_a_dial_of_the_ends_is_kept_beside_one_by_layer(tmp_path):
    model = make_trained("llama", "ends")
    model.set_alpha(0.3)
    model.set_alpha({1: 0.1})
    assert model.expansion.dial == {1: 0.1, 3: 0.3, -1: 0.3}
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
    again.set_alpha(dict.fromkeys((1, 3, -1), 0.0))
    assert torch.equal(logits(again), base_logits("llama"))


@pytest.mark.parametrize("change", ["one value", "another model"])
def test_a_sidecar_refuses_another_base(change, tmp_path):
    model = make_trained("llama")
    model.save_sidecar(tmp_path / "sidecar")
    other = make_base("llama")
    with torch.no_grad():
        if change == "one value":
            other.model.layers[2].mlp.up_proj.weight[5, 3] += 0.5
        else:
            other = make_base("qwen3")
    before = logits(other)
    with pytest.raises(CheckpointError, match="check_base=False"):
        load_sidecar(other, tmp_path / "sidecar")
    assert torch.equal(logits(other), before)
    assert type(other).__name__ != "ControlLLMForCausalLM"
    assert all(p.requires_grad for p in other.parameters())
    assert other.config.num_hidden_layers == 4
    if change == "one value":  # an override for those who know better
        loaded = load_sidecar(other, tmp_path / "sidecar", check_base=False)
        assert torch.equal(loaded.blocks[1].expanded.mlp.up_proj.weight,
                           model.blocks[1].expanded.mlp.up_proj.weight)  # fmt: skip


def test_a_sidecar_that_does_not_fit_leaves_the_base_alone(tmp_path):
    make_trained("llama").save_sidecar(tmp_path / "sidecar")
    weights = tmp_path / "sidecar" / "sidecar.safetensors"
    with resealed(weights.parent):
        edit_tensors(weights, lambda tensors: tensors.pop("model.layers.1.interpolator.logit"))
    base = make_base("llama")
    with pytest.raises(CheckpointError, match=r"missing .*interpolator"):
        load_sidecar(base, tmp_path / "sidecar")
    assert torch.equal(logits(base), base_logits("llama"))
    assert base.config.to_dict() == make_base("llama").config.to_dict()
    assert torch.equal(logits(expand(base)), base_logits("llama"))


def test_unfrozen_parts_of_the_base_travel_in_the_sidecar(tmp_path):
    config = ExpansionConfig(num_blocks=2, freeze=["blocks", "norm"])
    model = train(expand(make_base("llama"), config))
    before = make_base("llama").get_input_embeddings().weight
    assert not torch.equal(model.get_input_embeddings().weight, before)
    model.save_sidecar(tmp_path / "sidecar")
    again = load_sidecar(make_base("llama"), tmp_path / "sidecar")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("form", ["full", "sidecar"])
def test_a_card_lies_beside_every_form(form, tmp_path):
    model = make_expanded("llama")
    (model.save_pretrained if form == "full" else model.save_sidecar)(tmp_path / form)
    card = (tmp_path / form / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: controlllm\n")
    assert "interpolator" in card and "lerp" in card and f"({form})" in card


def test_loading_in_bfloat16_onto_a_device(tmp_path):
    model = make_trained("llama", "ends")
    model.save_pretrained(tmp_path / "expanded")
    make_base("llama").save_pretrained(tmp_path / "base")
    options = {"dtype": torch.bfloat16, "device_map": {"": "cpu"}}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "expanded", **options)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", **options)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(again).float(), logits(model), rtol=0.1, atol=0.2)
    assert torch.equal(greedy(again), greedy(again, use_cache=False))
    with again.disable_expansion():
        assert torch.equal(logits(again), logits(base))


def test_loading_in_shards(tmp_path):
    model = make_trained("qwen3", "hybrid")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_the_config_counts_all_slots_and_remembers_the_base(tmp_path):
    make_expanded("qwen2-windowed").save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    text = config.get_text_config()
    assert text.num_hidden_layers == 6
    assert text.layer_types == ["sliding_attention", "full_attention"] * 2 + ["full_attention"] * 2
    base = config.base_config()
    assert base.num_hidden_layers == 4
    assert base.layer_types == ["sliding_attention", "full_attention"] * 2


ALONE = """
import sys
sys.modules["controlllm"] = None  # as if it were not installed, though it may be
import torch
from transformers import AutoModelForCausalLM

folder, results = sys.argv[1:]
torch.set_num_threads(1)
seen = {}
for name in ("a", "b"):
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/{name}", trust_remote_code=True)
    given = torch.load(f"{folder}/inputs.pt")
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        seen[name] = model(input_ids=given["ids"]).logits
        seen[name + " generated"] = model.generate(given["prompts"], **options)
        model.set_alpha(0.0)
        seen[name + " base"] = model(input_ids=given["ids"]).logits
        model.set_alpha(None)
    model.train()
    loss = model(input_ids=given["ids"], labels=given["ids"]).loss
    loss.backward()
    seen[name + " loss"] = loss.detach()
    model.save_pretrained(f"{folder}/{name} again")
    again = AutoModelForCausalLM.from_pretrained(f"{folder}/{name} again", trust_remote_code=True)
    with torch.no_grad():
        seen[name + " again"] = again.eval()(input_ids=given["ids"]).logits
torch.save(seen, results)
"""


def test_remote_code_runs_without_the_package(tmp_path):
    models = {"a": make_trained("llama-tied", "ends"), "b": make_trained("gemma3", "dlerp")}
    ids = batch()["input_ids"]
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    torch.save({"ids": ids, "prompts": prompts()}, tmp_path / "inputs.pt")
    run_script(ALONE, tmp_path, [tmp_path, tmp_path / "results.pt"])
    seen = torch.load(tmp_path / "results.pt")
    for name, model in models.items():
        assert torch.equal(seen[name], logits(model))
        assert torch.equal(seen[f"{name} again"], logits(model))
        assert torch.equal(seen[f"{name} generated"], greedy(model))
        with model.disable_expansion():
            assert torch.equal(seen[f"{name} base"], logits(model))
        assert torch.equal(seen[f"{name} loss"], model.train()(input_ids=ids, labels=ids).loss)
        # What was saved over there loads over here.
        again = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name} again")
        assert type(again) is ControlLLMForCausalLM
        assert torch.equal(logits(again), logits(model.eval()))


def run_script(text, folder, arguments):
    """Run a script in a process whose path has the installed packages, but not this one."""
    import transformers

    script = folder / "alone.py"
    site = os.path.dirname(os.path.dirname(transformers.__file__))
    script.write_text(f"import sys; sys.path.append({site!r})\n{text}")
    environment = {
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": os.environ["PATH"],
    }
    command = [sys.executable, "-I", str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("interpolator", INTERPOLATORS)
def test_interpolators_travel_with_what_they_learned(interpolator, tmp_path):
    settings = {} if interpolator in ("dlerp", "dlerpin", "moe") else {"train_alpha": True}
    config = ExpansionConfig(num_blocks=2, interpolator=interpolator, alpha=0.3, **settings)
    model = train(expand(make_base("llama"), config))
    model.save_sidecar(tmp_path / "sidecar")
    again = load_sidecar(make_base("llama"), tmp_path / "sidecar")
    assert again.alphas().keys() <= model.alphas().keys()
    assert torch.equal(logits(again), logits(model))
