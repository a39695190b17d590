"""What PEFT saves: plain names, a card, which base it was; and what is refused in loading."""

import itertools
import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.integrations.peft.making import add_trained, make_adapted, make_two, stir
from tests.laws.architectures import make_base
from tests.laws.models import base_logits, batch, logits
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from controlllm import expand, load_sidecar
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.integrations.peft import (
    ControlLLMPeftConfig,
    adapter_to_sidecar,
    adapters_of,
    sidecar_to_adapter,
)

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def saved_base(tmp_path_factory):
    """A base in a folder, so that an adapter can name it."""
    folder = tmp_path_factory.mktemp("base")
    make_base("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(saved_base, tmp_path_factory):
    """An adapter's folder, and the logits that belong to it."""
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(saved_base)
    model = get_peft_model(base, ControlLLMPeftConfig(num_blocks=2), "maths").eval()
    stir(model, "maths")
    model.save_pretrained(str(folder))
    return folder / "maths", logits(model)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the adapter's folder, to spoil."""
    return shutil.copytree(saved[0], tmp_path / "adapter")


def test_names_in_the_file_have_no_adapter_in_them(saved):
    names = list(load_file(saved[0] / WEIGHTS))
    assert "base_model.model.model.layers.1.controlllm_parts.interpolator.logit" in names
    assert "base_model.model.model.layers.3.controlllm_parts.expanded.mlp.up_proj.weight" in names
    assert len(names) == 20 and not any("maths" in name for name in names)


def test_auto_classes_open_an_adapters_folder(saved, saved_base):
    folder, wanted = saved
    for model in (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoPeftModelForCausalLM.from_pretrained(folder),
    ):
        assert torch.equal(logits(model), wanted)
        assert not any(parameter.requires_grad for parameter in model.parameters())
    native = AutoModelForCausalLM.from_pretrained(saved_base)
    native.load_adapter(str(folder), adapter_name="maths")
    native.load_adapter(str(folder), adapter_name="twin")
    native.set_adapter("maths")
    assert torch.equal(logits(native), wanted)
    native.disable_adapters()
    assert torch.equal(logits(native), base_logits("llama"))
    native.enable_adapters()
    native.delete_adapter("maths")
    assert torch.equal(logits(native), wanted) and native.active_adapters() == ["twin"]


def test_transformers_own_saving_gives_the_same_file(saved, saved_base, tmp_path):
    native = AutoModelForCausalLM.from_pretrained(saved_base)
    native.load_adapter(str(saved[0]), adapter_name="other")
    native.save_pretrained(tmp_path)
    ours, theirs = load_file(tmp_path / WEIGHTS), load_file(saved[0] / WEIGHTS)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)
    again = PeftModel.from_pretrained(make_base("llama"), tmp_path)
    assert torch.equal(logits(again), saved[1])


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("base, variant", [("llama", "concat"), ("llama-tied", "ends")])
def test_several_adapters_are_saved_side_by_side(tmp_path, base, variant, low_cpu_mem_usage):
    model = make_two(base, make_adapted(base, variant).peft_config["default"].expansion().to_dict())
    model.save_pretrained(str(tmp_path))
    options = {"low_cpu_mem_usage": low_cpu_mem_usage}
    again = PeftModel.from_pretrained(make_base(base), tmp_path / "code", "maths", **options)
    again.load_adapter(tmp_path / "maths", "default", **options)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    for ours, theirs in (("maths", "code"), ("default", "maths")):
        again.set_adapter(ours)
        model.set_adapter(theirs)
        assert torch.equal(logits(again), logits(model))
    ends = adapters_of(again).named["maths"].parts.ends
    if ends and base == "llama-tied":
        assert ends["head"].expanded.weight is ends["embedding"].expanded.weight
    again.set_adapter("maths")
    with again.disable_adapter():
        assert torch.equal(logits(again), base_logits(base))


def test_training_goes_on_after_loading(saved, saved_base):
    """Through transformers' loader, too, which makes all parameters trainable anew."""
    model = PeftModel.from_pretrained(make_base("llama"), saved[0], is_trainable=True).train()
    native = AutoModelForCausalLM.from_pretrained(saved_base)
    native.load_adapter(str(saved[0]), is_trainable=True)
    native.train()
    for one in (model, native):
        one(**batch()).loss.backward()
    ours, theirs = (adapters_of(one).require_active().tensors() for one in (model, native))
    for key, tensor in ours.items():
        assert tensor.requires_grad == theirs[key].requires_grad == (not key.endswith("logit")), key
        if tensor.requires_grad:
            assert torch.equal(tensor.grad, theirs[key].grad)
    frozen = [p for n, p in native.named_parameters() if "controlllm_parts" not in n]
    assert all(p.grad is None and not p.requires_grad for p in frozen)


def spoil(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


NORM = "base_model.model.model.layers.1.controlllm_parts.expanded.input_layernorm.weight"
SPOILT = [
    ("missing", lambda tensors: tensors.pop(NORM), "missing .*input_layernorm"),
    ("left over", lambda tensors: tensors.update(more=torch.ones(1)), "left over more"),
    ("shape", lambda tensors: tensors.update({NORM: torch.ones(3)}), r"has shape \(3,\)"),
]


@pytest.mark.parametrize("change, message", [row[1:] for row in SPOILT], ids=[r[0] for r in SPOILT])
def test_a_file_that_does_not_fit_is_refused(folder, change, message):
    spoil(folder, change)
    with pytest.raises(CheckpointError, match=message):
        PeftModel.from_pretrained(make_base("llama"), folder)
    model = make_adapted()
    with pytest.raises(CheckpointError, match=message):
        model.load_adapter(folder, "other")


def test_a_name_of_another_adapter_in_the_file_is_refused(folder):
    """What PEFT saves by itself for a tuner that nests modules: it is loaded with a warning."""
    tensors = load_file(folder / WEIGHTS)
    named = {
        k.replace("controlllm_parts.", "controlllm_parts.maths."): t for k, t in tensors.items()
    }
    save_file(named, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"missing .*left over"):
        PeftModel.from_pretrained(make_base("llama"), folder)


def test_a_wrong_base_is_refused_untouched(saved):
    wrong = make_base("llama")
    with torch.no_grad():
        wrong.lm_head.weight[0, 0] += 1
    before = logits(wrong)
    with pytest.raises(CheckpointError, match=r"was trained on .*check_base=False"):
        PeftModel.from_pretrained(wrong, saved[0])
    with pytest.raises(CheckpointError, match="was trained on"):
        wrong.load_adapter(str(saved[0]))
    assert torch.equal(logits(wrong), before)
    assert not wrong._forward_hooks and not any(".base_layer." in n for n in wrong.state_dict())
    model = PeftModel.from_pretrained(wrong, saved[0], check_base=False)
    assert not torch.equal(logits(model), before)


def test_the_config_says_which_base_and_how(saved, saved_base):
    config = PeftConfig.from_pretrained(saved[0])
    assert isinstance(config, ControlLLMPeftConfig)
    assert config.base_model_name_or_path == str(saved_base)
    assert config.base["fingerprint"] == adapters_of(make_adapted()).base["fingerprint"]
    assert config.base["architecture"] == "LlamaForCausalLM" and config.num_blocks == 2
    values = json.loads((saved[0] / "adapter_config.json").read_text())
    assert values["peft_type"] == "CONTROLLLM" and values["task_type"] == "CAUSAL_LM"
    assert not {"check_base", "target_modules"} & values.keys()


def test_one_config_serves_several_bases():
    config = ControlLLMPeftConfig(num_blocks=1)
    for name in ("llama", "gemma2"):
        model = get_peft_model(make_base(name), config)
        assert torch.equal(logits(model), base_logits(name))


@pytest.mark.parametrize("config_class", [PeftConfig, ControlLLMPeftConfig])
def test_a_setting_of_a_later_version_is_refused(folder, config_class):
    """PEFT would leave it out with a warning, and the adapter would compute something else."""
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(values | {"telescoped": True}))
    with pytest.raises(ConfigError, match="'telescoped' is not known"):
        config_class.from_pretrained(folder)


def test_the_dial_and_measured_alphas_are_saved(tmp_path):
    model = make_adapted(variant="dlerp")
    stir(model, "default")
    with model.record_alpha():
        logits(model)
    model.set_alpha({1: 0.25})
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(make_base("llama"), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert again.alphas()[1] == model.alphas()[1]
    assert again.peft_config["default"].dial == {1: 0.25}
    assert again.peft_config["default"].mean_alpha == model.peft_config["default"].mean_alpha


def test_a_card_says_how_to_load_it_and_a_written_one_stays(folder, saved, tmp_path):
    text = (saved[0] / "README.md").read_text()
    fingerprint = PeftConfig.from_pretrained(saved[0]).base["fingerprint"]
    assert "library_name: peft" in text and "PeftModel.from_pretrained" in text
    assert fingerprint in text and "More Information Needed" not in text
    model = make_adapted()
    model.save_pretrained(str(tmp_path / "own"))
    model.set_alpha(0.25)
    model.save_pretrained(str(tmp_path / "own"))
    assert "| dial | 0.25 |" in (tmp_path / "own" / "README.md").read_text()
    (tmp_path / "own" / "README.md").write_text("# My adapter\n")
    model.save_pretrained(str(tmp_path / "own"))
    assert "# My adapter" in (tmp_path / "own" / "README.md").read_text()


def test_what_an_adapter_cannot_hold_is_not_converted(tmp_path):
    in_place = expand(make_base("llama"), num_blocks=1, freeze=["blocks"])
    in_place.save_sidecar(tmp_path / "in_place")
    with pytest.raises(CheckpointError, match="part of the base"):
        sidecar_to_adapter(tmp_path / "in_place", tmp_path / "adapter")
    grown = expand(make_base("llama"), num_blocks=1, expand_ends=True)
    grown.resize_token_embeddings(64)
    grown.save_sidecar(tmp_path / "grown")
    with pytest.raises(CheckpointError, match="added tokens"):
        sidecar_to_adapter(tmp_path / "grown", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    "structure, interpolator",
    [*itertools.product(["concat", "hybrid"], ["dlerp", "prog", "moe"]), ("stack", "lerp")],
)
def test_tied_ends_are_converted_with_every_kind_of_block(tmp_path, interpolator, structure):
    settings = {"num_blocks": 2, "interpolator": interpolator, "structure": structure}
    model = make_adapted("llama-tied", expand_ends=True, **settings)
    stir(model, "default")
    model.save_pretrained(str(tmp_path / "adapter"))
    adapter_to_sidecar(tmp_path / "adapter", tmp_path / "sidecar")
    expanded = load_sidecar(make_base("llama-tied"), tmp_path / "sidecar")
    assert torch.equal(logits(expanded), logits(model))
    sidecar_to_adapter(tmp_path / "sidecar", tmp_path / "back")
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("back", "adapter"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_another_methods_adapter_is_no_sidecar(tmp_path):
    model = get_peft_model(make_base("llama"), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(str(tmp_path / "lora"))
    with pytest.raises(CheckpointError, match="not of a Control LLM adapter"):
        adapter_to_sidecar(tmp_path / "lora", tmp_path / "sidecar")
    with pytest.raises(CheckpointError, match="is missing"):
        adapter_to_sidecar(tmp_path / "nothing", tmp_path / "sidecar")


def test_a_folder_with_something_else_is_not_replaced(saved, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        adapter_to_sidecar(saved[0], tmp_path, overwrite=True)
    adapter_to_sidecar(saved[0], tmp_path / "sidecar")
    with pytest.raises(CheckpointError, match="not empty"):
        sidecar_to_adapter(tmp_path / "sidecar", tmp_path, overwrite=True)
    sidecar_to_adapter(tmp_path / "sidecar", tmp_path / "adapter")
    sidecar_to_adapter(tmp_path / "sidecar", tmp_path / "adapter", overwrite=True)
    again = PeftModel.from_pretrained(make_base("llama"), tmp_path / "adapter")
    assert torch.equal(logits(again), saved[1])


def test_a_converted_adapter_names_its_base(saved, saved_base, tmp_path):
    adapter_to_sidecar(saved[0], tmp_path / "sidecar")
    sidecar_to_adapter(tmp_path / "sidecar", tmp_path / "adapter")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")), saved[1])
    moved = shutil.copytree(saved_base, tmp_path / "moved")
    sidecar_to_adapter(
        tmp_path / "sidecar",
        tmp_path / "adapter",
        base_model_name_or_path=str(moved),
        overwrite=True,
    )
    assert PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path == str(moved)


def test_buffers_are_the_frozen_blocks_and_not_saved(tmp_path):
    base = make_base("llama")
    base.model.layers[1].mlp.register_buffer("seen", torch.ones(3))
    model = get_peft_model(base, ControlLLMPeftConfig(num_blocks=2))
    assert any("controlllm_parts.default.expanded.mlp.seen" in name for name in model.state_dict())
    model.save_pretrained(str(tmp_path))
    assert not any("seen" in name for name in load_file(tmp_path / WEIGHTS))
    PeftModel.from_pretrained(make_base("llama"), tmp_path)


def test_a_base_without_weights_yet_takes_an_adapter(saved):
    """As a process of FSDP builds it that gets its weights from another."""
    with torch.device("meta"):
        empty = LlamaForCausalLM(make_base("llama").config)
    model = PeftModel.from_pretrained(empty, saved[0], low_cpu_mem_usage=True)
    tensors = adapters_of(model).require_active().tensors()
    assert not any(tensor.is_meta for tensor in tensors.values())
    assert adapters_of(model).base["fingerprint"] is None


def test_many_blocks_are_found_by_their_whole_names():
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=12,
        num_attention_heads=2,
    )  # fmt: skip
    model = get_peft_model(LlamaForCausalLM(config), ControlLLMPeftConfig(layers=[*range(1, 12)]))
    assert len(model.get_layer_status()) == 11
    add_trained(model, "other", seed=1, num_blocks=12)
    assert len(model.get_layer_status()) == 12
