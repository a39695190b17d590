"""The axolotl plugin: its interface as data, and its methods on real models and trainers.

The last tests need the package, which CI does not have; benchmarks/neighbours.py runs whole
trainings in it.
"""

import inspect
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer

from controlllm import load_sidecar
from controlllm.common.errors import ConfigError
from controlllm.expansion.files.sidecar import sidecar_tensors

pytest.importorskip("pydantic", reason="axolotl's settings are pydantic models")

from controlllm.integrations.axolotl import ControlLLMArgs, ControlLLMPlugin

NAME = "controlllm.integrations.axolotl.ControlLLMPlugin"
VERSION = "0.19.0"
INTERFACE = {
    "register": ("cfg",),
    "get_input_args": (),
    "get_adapter_capabilities": (),
    "load_adapter": ("model", "cfg", "inference", "config_only"),
    "add_callbacks_pre_trainer": ("cfg", "model"),
    "post_trainer_create": ("cfg", "trainer"),
    "post_train": ("cfg", "model"),
}
"""The methods of axolotl 0.19.0's `BasePlugin` that the plugin has, and what they take."""


def config(tmp_path, **changes):
    """What axolotl gives a plugin, as a plain dict."""
    own = {"num_blocks": 2, "divergence": "mse"}
    cfg = {"adapter": "controlllm", "controlllm": own, "output_dir": str(tmp_path / "run")}
    return cfg | changes


def run(plugin, cfg, model, rows, args, resume=None):
    """The order in which axolotl calls a plugin, around a trainer of transformers."""
    plugin.register(cfg)
    model, peft_config = plugin.load_adapter(model, cfg)
    assert peft_config is None
    callbacks = plugin.add_callbacks_pre_trainer(cfg, model)
    trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=callbacks)
    plugin.post_trainer_create(cfg, trainer)
    trainer.train(resume_from_checkpoint=resume)
    plugin.post_train(cfg, trainer.model)
    return trainer


def methods(cls):
    return {name: tuple(inspect.signature(getattr(cls, name)).parameters)[1:] for name in INTERFACE}


def test_methods_take_what_axolotl_gives():
    assert methods(ControlLLMPlugin) == INTERFACE


def test_settings_become_part_of_axolotls_yaml():
    module, name = ControlLLMPlugin().get_input_args().rsplit(".", 1)
    assert (module, name) == (ControlLLMArgs.__module__, ControlLLMArgs.__name__)
    assert ControlLLMArgs(controlllm={"num_blocks": 2}).controlllm == {"num_blocks": 2}
    assert ControlLLMArgs().controlllm is None


def test_the_config_of_the_page_is_read(page_configs):
    (cfg,) = page_configs("axolotl")
    plugin = ControlLLMPlugin()
    plugin.register(cfg)
    assert cfg["plugins"] == [NAME] and len(plugin.add_callbacks_pre_trainer(cfg, None)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"controlllm": {"num_blokcs": 2}}, "controlllm key='num_blokcs'.*'num_blocks'"),
        ({"controlllm": {"divergence": "msee"}}, "divergence='msee'.*'mse'"),
        ({"adapter": "lora"}, "adapter='lora'; set adapter: controlllm"),
        ({"fsdp_config": {"offload_params": True}}, "fsdp_config=.*no sidecar"),
        ({"load_in_4bit": True}, "load_in_4bit=True.*copies of packed weights"),
        ({"rl": "dpo"}, "rl='dpo'.*reference model"),
    ],
)
def test_a_yaml_that_cannot_work_is_refused_before_anything_is_loaded(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        ControlLLMPlugin().register(config(tmp_path, **changes))


def test_other_adapters_are_left_alone(tmp_path, base, rows, arguments):
    plugin, cfg = ControlLLMPlugin(), config(tmp_path, adapter="lora", controlllm=None)
    plugin.register(cfg)
    assert plugin.load_adapter(base, cfg) is None
    assert plugin.add_callbacks_pre_trainer(cfg, base) == []
    trainer = Trainer(model=base, args=arguments(), train_dataset=rows)
    plugin.post_trainer_create(cfg, trainer)
    assert "_save" not in vars(trainer)
    plugin.post_train(cfg, base)
    assert not (tmp_path / "run" / "sidecar").exists()


def test_a_run_trains_the_copies_and_keeps_sidecars(tmp_path, base, base_folder, rows, arguments):
    trainer = run(ControlLLMPlugin(), config(tmp_path), base, rows, arguments())
    frozen = AutoModelForCausalLM.from_pretrained(base_folder)
    ids = torch.tensor(rows["input_ids"])
    trainer.model.eval()
    with torch.no_grad(), trainer.model.disable_expansion():
        assert torch.equal(trainer.model(ids).logits, frozen(ids).logits)
    assert any(value > 0 for value in trainer.model.divergence.values())
    files = {path.name for path in (tmp_path / "run" / "checkpoint-2").iterdir()}
    assert {"sidecar", "optimizer.pt"} <= files and "model.safetensors" not in files
    last = load_sidecar(frozen, tmp_path / "run" / "sidecar")
    for name, tensor in sidecar_tensors(last).items():
        assert torch.equal(tensor, sidecar_tensors(trainer.model)[name])


def test_the_divergence_pulls_the_branches_together(tmp_path, base_folder, rows, arguments):
    def divergence(weight):
        cfg = config(tmp_path, controlllm={"num_blocks": 2, "divergence_weight": weight})
        base = AutoModelForCausalLM.from_pretrained(base_folder)
        args = arguments(save_strategy="no", max_steps=6)
        model = run(ControlLLMPlugin(), cfg, base, rows, args).model
        return sum(model.divergence.values())

    assert divergence(10.0) < 0.8 * divergence(0.0)


def test_a_run_is_resumed_exactly(tmp_path, base, base_folder, rows, arguments):
    straight = run(ControlLLMPlugin(), config(tmp_path), base, rows, arguments())
    again = AutoModelForCausalLM.from_pretrained(base_folder)
    checkpoint = f"{tmp_path}/run/checkpoint-2"
    args = arguments(save_strategy="no")
    resumed = run(ControlLLMPlugin(), config(tmp_path), again, rows, args, checkpoint)
    ours, theirs = sidecar_tensors(straight.model), sidecar_tensors(resumed.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_whole_checkpoints_have_their_sidecar_beside_them(tmp_path, base, rows, arguments):
    own = {"num_blocks": 1, "checkpoints": "full"}
    run(ControlLLMPlugin(), config(tmp_path, controlllm=own), base, rows, arguments())
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert (checkpoint / "model.safetensors").is_file()
    assert (checkpoint / "sidecar" / "sidecar.safetensors").is_file()
    assert json.loads((checkpoint / "config.json").read_text())["model_type"] == "controlllm"


def test_a_trained_sidecar_is_begun_from_and_inferred_with(
    tmp_path, base, base_folder, rows, arguments
):
    trained = run(ControlLLMPlugin(), config(tmp_path), base, rows, arguments()).model.eval()
    plugin = ControlLLMPlugin()
    cfg = config(tmp_path, lora_model_dir=str(tmp_path / "run"), inference=True)
    again, _ = plugin.load_adapter(AutoModelForCausalLM.from_pretrained(base_folder), cfg)
    ids = torch.tensor(rows["input_ids"])
    assert torch.equal(again.eval()(ids).logits, trained(ids).logits)
    with pytest.raises(ConfigError, match="add --lora-model-dir"):
        plugin.load_adapter(base, config(tmp_path, inference=True))
    with pytest.raises(ConfigError, match="no PEFT config"):
        plugin.load_adapter(base, config(tmp_path), config_only=True)


def test_the_interface_is_axolotls():
    module = pytest.importorskip("axolotl.integrations.base", reason="needs axolotl (not in CI)")
    assert methods(module.BasePlugin) == INTERFACE
    assert issubclass(ControlLLMPlugin, module.BasePlugin)


def test_axolotl_knows_every_setting_of_the_page(page_configs):
    pytest.importorskip("axolotl.loaders", reason="needs axolotl (not in CI)")
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault

    (yaml,) = page_configs("axolotl")
    prepare_plugins(DictDefault(yaml))
    cfg = validate_config(DictDefault(yaml))
    assert all(cfg.get(key) is not None for key in yaml)
    assert cfg.controlllm.to_dict() == yaml["controlllm"]


def test_axolotl_validates_a_config_and_loads_the_adapter(tmp_path, base, base_folder):
    pytest.importorskip("axolotl.loaders", reason="needs axolotl (not in CI)")
    from axolotl.integrations.base import PluginManager
    from axolotl.loaders.adapter import load_adapter
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault

    yaml = config(tmp_path, base_model=str(base_folder), plugins=[NAME])
    yaml |= {"datasets": [{"path": "rows.jsonl", "type": "completion"}], "learning_rate": 0.01}
    yaml |= {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 1}
    cfg = DictDefault(yaml)
    prepare_plugins(cfg)
    cfg = validate_config(cfg)
    assert NAME in PluginManager.get_instance().plugins
    model, peft_config = load_adapter(base, cfg, cfg.adapter)
    assert len(model.blocks) == 2 and peft_config is None
    wrong = DictDefault(yaml | {"controlllm": {"interpolater": "lerp"}})
    with pytest.raises(ConfigError, match="'interpolator'"):
        prepare_plugins(wrong)
