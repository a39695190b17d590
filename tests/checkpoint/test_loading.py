"""Every form that is written comes back as the same model; what cannot be loaded is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from controlllm import ControlLLMForCausalLM, expand
from controlllm.checkpoint import (
    Kind,
    LoadOptions,
    TrainingState,
    describe_model,
    export,
    load_model,
    load_tokenizer,
    locate,
    mark_best,
    save_checkpoint,
    trained_tensors,
)
from controlllm.common.errors import CheckpointError, ConfigError, ModelError
from controlllm.common.tensors import copy_tensors

IDS = torch.tensor([[1, 40, 50, 60, 70, 80]])


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model.eval()(input_ids=IDS).logits


def disturb(model: PreTrainedModel, seed: int = 0) -> None:
    """Change everything that trains, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained_tensors(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def base_folder(tmp_path: Path, pico_llama: Callable, pico_tokenizer) -> Path:
    folder = tmp_path / "base"
    pico_llama().save_pretrained(folder)
    pico_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(base_folder: Path) -> ControlLLMForCausalLM:
    """An expanded and then changed model on `base_folder`."""
    base = LlamaForCausalLM.from_pretrained(base_folder)
    expanded = expand(base, num_blocks=2, expand_ends=True, interpolator="dlerp")
    disturb(expanded)
    return expanded


def state_of(model: PreTrainedModel, step: int) -> TrainingState:
    return TrainingState(step, trained_tensors(model), describe_model(model))


@pytest.mark.parametrize("form", ["sidecar", "full"])
def test_exported_forms_come_back_exactly(
    tmp_path: Path, model: ControlLLMForCausalLM, pico_tokenizer: PreTrainedTokenizerBase, form: str
) -> None:
    model.set_alpha(0.3)
    folder = export(model, tmp_path / form, form, pico_tokenizer)
    loaded, tokenizer = load_model(folder)
    assert isinstance(loaded, ControlLLMForCausalLM)
    weights, wanted = loaded.state_dict(), model.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[key], wanted[key]) for key in wanted)
    # Kernels sum in another order where mapped weights do not lie on a boundary of theirs.
    torch.testing.assert_close(logits(loaded), logits(model), atol=2e-6, rtol=0)
    assert loaded.alphas() == pytest.approx(model.alphas(), abs=1e-6)
    assert loaded.config.expansion["dial"] == 0.3
    assert tokenizer("hi").input_ids == pico_tokenizer("hi").input_ids
    assert (folder / "README.md").is_file()


def test_collapsed_form_is_the_base_class_and_leaves_the_model_alone(
    tmp_path: Path, base_folder: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    model = expand(LlamaForCausalLM.from_pretrained(base_folder), num_blocks=2)
    base_logits = logits(model)
    disturb(model)
    model.set_alpha(0.0)
    before = logits(model)
    folder = export(model, tmp_path / "flat", "collapsed", pico_tokenizer)
    loaded, _ = load_model(folder)
    assert type(loaded) is LlamaForCausalLM
    assert torch.allclose(logits(loaded), base_logits, atol=1e-6)
    assert torch.equal(logits(model), before)
    assert "collapsed" in (folder / "README.md").read_text()


def test_run_folder_best_and_checkpoint(tmp_path: Path, model: ControlLLMForCausalLM) -> None:
    run = tmp_path / "run"
    save_checkpoint(run, state_of(model, 1))
    first = logits(model)
    disturb(model, seed=1)
    save_checkpoint(run, state_of(model, 2))
    second = logits(model)
    assert not torch.equal(first, second)
    assert torch.equal(logits(load_model(run)[0]), second)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(run / "best")
    mark_best(run, 1, {"learn_loss": 1.0})
    assert torch.equal(logits(load_model(run)[0]), first)
    assert torch.equal(logits(load_model(run / "best")[0]), first)
    assert torch.equal(logits(load_model(run / "checkpoint-2")[0]), second)


def test_checkpoint_of_full_tuning_is_a_hugging_face_model(
    tmp_path: Path, base_folder: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(base_folder)
    disturb(model)
    folder = save_checkpoint(tmp_path / "run", state_of(model, 7))
    loaded, tokenizer = load_model(tmp_path / "run")
    assert torch.equal(logits(loaded), logits(model))
    assert tokenizer.vocab_size == 259
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(folder)), logits(model))


def test_damaged_checkpoint_is_not_loaded(tmp_path: Path, model: ControlLLMForCausalLM) -> None:
    folder = save_checkpoint(tmp_path / "run", state_of(model, 1))
    weights = folder / "sidecar.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated"):
        load_model(folder)
    with (
        pytest.warns(UserWarning, match="Passing over"),
        pytest.raises(CheckpointError, match="no whole checkpoint"),
    ):
        load_model(tmp_path / "run")


def test_restored_tensors_are_the_saved_ones(
    base_folder: Path, model: ControlLLMForCausalLM
) -> None:
    def restore_tensors(model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
        copy_tensors(trained_tensors(model), tensors, "the checkpoint")

    saved = {name: tensor.clone() for name, tensor in trained_tensors(model).items()}
    expected = logits(model)
    disturb(model, seed=3)
    restore_tensors(model, saved)
    assert torch.equal(logits(model), expected)
    other = expand(LlamaForCausalLM.from_pretrained(base_folder), num_blocks=1)
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_tensors(other, saved)
    plain = LlamaForCausalLM.from_pretrained(base_folder)
    with pytest.raises(CheckpointError, match=r"does not fit this model: missing lm_head.weight"):
        restore_tensors(plain, saved)
    smaller = {name: tensor[:1] for name, tensor in plain.named_parameters()}
    with pytest.raises(CheckpointError, match="has shape"):
        restore_tensors(plain, smaller)


def test_tokens_that_were_added_come_back(tmp_path: Path, model: ControlLLMForCausalLM) -> None:
    model.resize_token_embeddings(261)
    disturb(model)
    folder = save_checkpoint(tmp_path / "run", state_of(model, 1))
    loaded, _ = load_model(folder)
    assert logits(loaded).shape[-1] == 261
    assert torch.equal(logits(loaded), logits(model))


def test_a_foreign_base_is_refused_unless_told_otherwise(
    tmp_path: Path, model: ControlLLMForCausalLM, pico_llama: Callable, pico_tokenizer
) -> None:
    export(model, tmp_path / "sidecar", "sidecar")
    pico_llama(seed=5).save_pretrained(tmp_path / "other")
    pico_tokenizer.save_pretrained(tmp_path / "other")
    other = str(tmp_path / "other")
    with pytest.raises(CheckpointError, match="was trained on"):
        load_model(tmp_path / "sidecar", LoadOptions(base=other))
    loaded, _ = load_model(tmp_path / "sidecar", LoadOptions(base=other, check_base=False))
    assert isinstance(loaded, ControlLLMForCausalLM)


def test_a_base_that_moved_is_asked_for(
    tmp_path: Path, base_folder: Path, model: ControlLLMForCausalLM
) -> None:
    export(model, tmp_path / "sidecar", "sidecar")
    moved = base_folder.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="not here; give its folder or name"):
        load_model(tmp_path / "sidecar")
    loaded, _ = load_model(tmp_path / "sidecar", LoadOptions(base=str(moved)))
    assert torch.equal(logits(loaded), logits(model))
    config = tmp_path / "sidecar" / "sidecar_config.json"
    values = json.loads(config.read_text())
    values["base"]["name_or_path"] = ""
    config.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="does not record the name of its base"):
        load_model(tmp_path / "sidecar")


def test_base_is_loaded_in_the_type_of_its_sidecar(
    tmp_path: Path, base_folder: Path, model: ControlLLMForCausalLM
) -> None:
    export(model, tmp_path / "sidecar", "sidecar")
    half = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16)
    half.save_pretrained(base_folder)
    options = LoadOptions(check_base=False)
    assert load_model(tmp_path / "sidecar", options)[0].dtype == torch.float32
    options = LoadOptions(check_base=False, dtype="bfloat16")
    assert load_model(tmp_path / "sidecar", options)[0].dtype == torch.bfloat16


def test_damaged_sidecar_is_named(tmp_path: Path, model: ControlLLMForCausalLM) -> None:
    folder = export(model, tmp_path / "sidecar", "sidecar")
    weights = folder / "sidecar.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"sidecar\.safetensors is broken or truncated"):
        load_model(folder)


def test_a_sidecar_on_the_hub_is_put_on_its_base(
    tmp_path: Path, model: ControlLLMForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's local cache as `hf download` leaves it, used offline."""
    cache = tmp_path / "hub" / "models--someone--my-sidecar"
    commit = "0123456789abcdef0123456789abcdef01234567"
    export(model, cache / "snapshots" / commit, "sidecar")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    for place in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{place}.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded, _ = load_model("someone/my-sidecar")
    assert torch.equal(logits(loaded), logits(model))


def test_wrong_options_are_named(base_folder: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'bfloat16'"):
        LoadOptions(dtype="bfloat")
    with pytest.raises(ConfigError, match="device='gpu'"):
        load_model(base_folder, LoadOptions(device="gpu"))
    with pytest.raises(CheckpointError, match="base cannot be loaded"):
        load_model(base_folder, LoadOptions(attn_implementation="flush"))


def test_plain_model_and_its_forms(tmp_path: Path, base_folder: Path) -> None:
    model, tokenizer = load_model(base_folder)
    assert type(model) is LlamaForCausalLM
    assert not model.training
    for form in ("sidecar", "collapsed"):
        with pytest.raises(ModelError, match="needs an expanded model"):
            export(model, tmp_path / "out", form)
    export(model, tmp_path / "out", "full", tokenizer)
    assert torch.equal(logits(load_model(tmp_path / "out")[0]), logits(model))
    with pytest.raises(ConfigError, match="Did you mean 'full'"):
        export(model, tmp_path / "out2", "ful")
    assert not (tmp_path / "out2").exists()


def test_non_empty_folder_is_refused_before_work(
    tmp_path: Path, model: ControlLLMForCausalLM
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        export(model, tmp_path / "out", "sidecar")
    with pytest.raises(CheckpointError, match="holds no model"):
        export(model, tmp_path / "out", "sidecar", overwrite=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    folder = export(model, tmp_path / "saved", "full")
    with pytest.raises(CheckpointError, match="not empty"):
        export(model, folder, "sidecar")
    export(model, folder, "sidecar", overwrite=True)
    assert locate(folder).kind is Kind.SIDECAR
    assert not (folder / "config.json").exists()


def test_full_disk_while_exporting(small_disk: Path, pico_llama: Callable) -> None:
    model = expand(pico_llama(hidden_size=64, intermediate_size=512), num_blocks=4)
    with pytest.raises(CheckpointError, match=r"cannot write .*out.*space"):
        export(model, small_disk / "out", "full")
    assert list(small_disk.iterdir()) == []


def test_what_is_no_model_is_named(tmp_path: Path, base_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no model"):
        (tmp_path / "empty").mkdir()
        locate(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="is a file"):
        locate(base_folder / "config.json")
    with pytest.raises(CheckpointError, match="no tokenizer in"):
        load_tokenizer([str(tmp_path)])
    assert locate("someone/some-model-1.5b").kind is Kind.HUB
    with pytest.raises(CheckpointError, match="some-model cannot be loaded"):
        load_model("nobody-here/some-model")


def test_pickled_weights_are_not_loaded(tmp_path: Path, base_folder: Path) -> None:
    weights = base_folder / "model.safetensors"
    torch.save(load_file(weights), base_folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(base_folder)


def test_damaged_weights_of_a_plain_model_are_named(base_folder: Path) -> None:
    weights = base_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="base cannot be loaded"):
        load_model(base_folder)
    save_file({"x": torch.zeros(1)}, weights)
