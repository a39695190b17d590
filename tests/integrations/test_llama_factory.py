"""LLaMA-Factory needs no plugin: it trains the folder of an expanded model.

What it does to a model is done here by hand; the last tests need the package, which CI does not
have. benchmarks/neighbours.py runs whole trainings in it.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer

from controlllm import expand, load_sidecar
from controlllm.checkpoint import export
from controlllm.cli import main
from controlllm.expansion.hub.modeling import AUTO_MAP


@pytest.fixture
def expanded_folder(base, pico_tokenizer, tmp_path):
    """The folder that LLaMA-Factory is given."""
    return export(expand(base, num_blocks=2), tmp_path / "expanded", "full", pico_tokenizer)


def set_up_full_tuning(model):
    """What `finetuning_type: full` of 0.9.5 does: it casts, and unfreezes nothing."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32)


def register_autoclass(config, model):
    """What 0.9.5 does to every model that names code of its own."""
    config.__class__.register_for_auto_class()
    model.__class__.register_for_auto_class()


def test_full_tuning_of_the_folder_trains_the_copies_only(
    expanded_folder, base_folder, rows, arguments, tmp_path
):
    model = AutoModelForCausalLM.from_pretrained(expanded_folder, dtype="auto")
    set_up_full_tuning(model)
    trainer = Trainer(model=model.train(), args=arguments(), train_dataset=rows)
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    before, after = (
        load_file(f / "model.safetensors") for f in (expanded_folder, tmp_path / "trained")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".expanded." in name for name in changed)
    assert any(value > 0 for value in model.divergence.values())


def test_a_checkpoint_becomes_a_sidecar_and_a_plain_model(
    expanded_folder, base_folder, pico_tokenizer, rows, arguments, tmp_path
):
    model = AutoModelForCausalLM.from_pretrained(expanded_folder)
    args = arguments(max_steps=2)
    trainer = Trainer(model.train(), args, train_dataset=rows, processing_class=pico_tokenizer)
    trainer.train()
    checkpoint = f"{args.output_dir}/checkpoint-2"
    ids = torch.tensor(rows["input_ids"])
    for form in ("sidecar", "collapsed"):
        assert main(["export", checkpoint, str(tmp_path / form), "--form", form]) == 0
    again = load_sidecar(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "sidecar")
    assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "collapsed")
    assert type(plain).__name__ == "LlamaForCausalLM"


def test_tools_that_register_what_they_load_leave_the_folder_whole(expanded_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(expanded_folder)
    register_autoclass(model.config, model)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert [p.name for p in (tmp_path / "again").glob("*.py")] == ["modeling_controlllm.py"]


# ----------------------------------------------------------------------------------------------
# The real package.


def loaded_by_the_package(folder, tmp_path, **settings):
    """The model as LLaMA-Factory sets it up to train."""
    pytest.importorskip("llamafactory", reason="needs llamafactory (not in CI)")
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_model, load_tokenizer

    yaml = {
        "model_name_or_path": str(folder),
        "trust_remote_code": True,
        "stage": "sft",
        "do_train": True,
        "dataset": "identity",
        "template": "empty",
        "output_dir": str(tmp_path / "lf"),
        "report_to": "none",
        "use_cpu": True,
    }
    model_args, _, _, finetuning_args, _ = get_train_args(yaml | settings)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    return load_model(tokenizer, model_args, finetuning_args, is_trainable=True)


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_llama_factory_full_tuning_keeps_the_base_frozen(expanded_folder, tmp_path):
    model = loaded_by_the_package(expanded_folder, tmp_path, finetuning_type="full")
    names = trained_names(model)
    assert names and all(".expanded." in name for name in names)
    model.save_pretrained(tmp_path / "again")
    auto_map = json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"]
    assert auto_map.items() >= AUTO_MAP.items()
    assert [p.name for p in (tmp_path / "again").glob("*.py")] == ["modeling_controlllm.py"]


@pytest.mark.parametrize(("layers", "trained"), [(-6, [1, 3]), (-2, [1]), (2, []), (4, [3])])
def test_llama_factory_freeze_tuning_only_freezes_more(expanded_folder, tmp_path, layers, trained):
    """Depth 4 and two copies: the package counts 6 layers, 0 to 5."""
    freeze = {"finetuning_type": "freeze", "freeze_trainable_layers": layers}
    model = loaded_by_the_package(expanded_folder, tmp_path, **freeze)
    names = trained_names(model)
    assert sorted({int(name.split(".layers.")[1].split(".")[0]) for name in names}) == trained
    assert all(".expanded." in name for name in names)


def test_llama_factory_knows_every_setting_of_the_page(page_configs, tmp_path):
    pytest.importorskip("llamafactory", reason="needs llamafactory (not in CI)")
    from llamafactory.hparams import get_train_args

    (config,) = page_configs("llama-factory")
    assert config.pop("pure_bf16")  # refused on a CPU
    given = config | {"output_dir": str(tmp_path), "use_cpu": True}
    _, data_args, training_args, finetuning_args, _ = get_train_args(given)
    assert finetuning_args.finetuning_type == "full"
    assert training_args.gradient_accumulation_steps == 8 and data_args.cutoff_len == 2048
