"""Settings, opening and checkpoints, as the plugins of other trainers share them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer

from controlllm import expand, load_sidecar
from controlllm.common.errors import CheckpointError, ConfigError, ModelError
from controlllm.expansion.files.sidecar import sidecar_tensors
from controlllm.integrations.neighbours import (
    PluginCallback,
    PluginSettings,
    SidecarCheckpoints,
    find_sidecar,
    open_expanded,
    write_into,
)


def read(**values):
    return PluginSettings.read(values, "controlllm")


def trained(model, seed=0):
    """Trained tensors off their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in sidecar_tensors(model).values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def same(ours, theirs):
    a, b = sidecar_tensors(ours), sidecar_tensors(theirs)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_settings_are_fields_of_the_expansion_and_of_the_plugin():
    settings = read(num_blocks=2, interpolator="dlerp", checkpoints="full", check_base=False)
    assert settings.expansion == {"num_blocks": 2, "interpolator": "dlerp"}
    assert (settings.checkpoints, settings.check_base) == ("full", False)
    assert PluginSettings.read(None, "controlllm") == PluginSettings()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_block": 2}, "controlllm key='num_block' is not known.*Did you mean 'num_blocks'"),
        ({"interpolator": "lerb"}, "interpolator='lerb'.*Did you mean 'lerp'"),
        ({"checkpoints": "ful"}, "controlllm.checkpoints='ful'.*Did you mean 'full'"),
        ({"check_base": "no"}, "check_base='no'; allowed: true, false"),
        ([2], "is no mapping"),
    ],
)
def test_what_cannot_work_is_refused_with_the_nearest_name(values, message):
    with pytest.raises(ConfigError, match=message):
        PluginSettings.read(values, "controlllm")


def test_a_base_is_expanded_and_an_expanded_model_stays(base):
    model = open_expanded(base, read(num_blocks=2))
    assert len(model.blocks) == 2
    assert model.config.base["fingerprint"]  # taken while the weights are whole
    assert open_expanded(model, read(num_blocks=2)) is model
    with pytest.raises(ConfigError, match="num_blocks=1 is asked for, but the model"):
        open_expanded(model, read(num_blocks=1))


def test_a_sidecar_is_put_on_the_base_of_its_own_kind_only(base, base_folder, pico_llama, tmp_path):
    model = trained(open_expanded(base, read(num_blocks=2)))
    write_into(model, tmp_path)
    again = open_expanded(
        AutoModelForCausalLM.from_pretrained(base_folder), read(num_blocks=2), tmp_path
    )
    assert same(again, model)
    with pytest.raises(ConfigError, match=r"interpolator='slerp' is asked for.*'lerp'"):
        open_expanded(pico_llama(), read(interpolator="slerp"), tmp_path)
    with pytest.raises(CheckpointError, match="was trained on"):
        open_expanded(pico_llama(seed=1), read(), tmp_path)
    assert open_expanded(pico_llama(seed=1), read(check_base=False), tmp_path).blocks
    with pytest.raises(ModelError, match="expanded already"):
        open_expanded(model, read(), tmp_path)


def test_sidecars_are_found_in_checkpoints_and_as_they_are(base, tmp_path):
    write_into(open_expanded(base, read(num_blocks=1)), tmp_path)
    assert find_sidecar(tmp_path) == find_sidecar(tmp_path / "sidecar") == tmp_path / "sidecar"
    with pytest.raises(CheckpointError, match=r"holds no sidecar.*controlllm export"):
        find_sidecar(tmp_path / "elsewhere")


def test_gathered_tensors_are_written_and_missing_ones_told(base, base_folder, tmp_path):
    model = open_expanded(base, read(num_blocks=1))
    gathered = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    write_into(model, tmp_path, gathered)
    again = load_sidecar(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "sidecar")
    for name, tensor in sidecar_tensors(again).items():
        assert torch.equal(tensor, gathered[f"base.{name}"])
    del gathered[next(name for name in gathered if ".expanded." in name)]
    with pytest.raises(CheckpointError, match=r"did not gather .*1 trained tensors are missing"):
        write_into(model, tmp_path, gathered)


def make_trainer(base_folder, rows, args, saves=True):
    model = expand(AutoModelForCausalLM.from_pretrained(base_folder), num_blocks=2)
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows)
    trainer.add_callback(PluginCallback())
    SidecarCheckpoints(trainer, saves)
    return trainer


def test_a_run_goes_on_from_a_sidecar_as_if_it_had_not_stopped(base_folder, rows, arguments):
    straight = make_trainer(base_folder, rows, arguments(save_steps=2))
    straight.train()
    checkpoint = f"{straight.args.output_dir}/checkpoint-2"
    with pytest.raises(CheckpointError):  # the whole model is not there
        find_sidecar(f"{checkpoint}/model.safetensors")
    resumed = make_trainer(base_folder, rows, arguments(save_strategy="no"))
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.state.global_step == 4
    assert same(straight.model, resumed.model)
    assert not same(straight.model, make_trainer(base_folder, rows, arguments()).model)


def test_a_checkpoint_of_another_base_or_expansion_is_refused(
    base_folder, rows, arguments, pico_llama
):
    trainer = make_trainer(base_folder, rows, arguments(max_steps=2))
    trainer.train()
    checkpoint = f"{trainer.args.output_dir}/checkpoint-2"
    for model, error, message in (
        (expand(pico_llama(seed=1), num_blocks=2), CheckpointError, "another base"),
        (expand(pico_llama(), num_blocks=2, alpha=0.3), ConfigError, "alpha=0.3 is asked for"),
    ):
        other = Trainer(model=model, args=arguments(), train_dataset=rows)
        SidecarCheckpoints(other)
        with pytest.raises(error, match=message):
            other.train(resume_from_checkpoint=checkpoint)


def test_the_best_checkpoint_is_loaded_from_its_sidecar(base_folder, rows, arguments):
    args = arguments(  # a rate at which the loss only grows: the first is the best
        eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, learning_rate=3.0
    )
    trainer = make_trainer(base_folder, rows, args)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    best = AutoModelForCausalLM.from_pretrained(base_folder)
    best = load_sidecar(best, find_sidecar(trainer.state.best_model_checkpoint))
    assert same(trainer.model, best)


def test_checkpoints_of_whole_models_are_loaded_as_ever(base_folder, rows, arguments):
    whole = make_trainer(base_folder, rows, arguments(max_steps=2), saves=False)
    whole.train()
    resumed = make_trainer(base_folder, rows, arguments(max_steps=2))
    resumed._load_from_checkpoint(f"{whole.args.output_dir}/checkpoint-2")
    assert same(whole.model, resumed.model)


def test_saving_gives_the_model_its_own_method_back(base_folder, rows, arguments, tmp_path):
    trainer = make_trainer(base_folder, rows, arguments())
    trainer.save_model(tmp_path / "light")
    assert sorted(p.name for p in (tmp_path / "light").iterdir()) == [
        "sidecar",
        "training_args.bin",
    ]
    trainer.model.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").is_file()
