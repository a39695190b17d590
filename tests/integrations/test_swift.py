"""The ms-swift plugin: its interface as data, and its tuner on real models and trainers.

The last tests need the package, which CI does not have; benchmarks/neighbours.py runs whole
trainings in it.
"""

import importlib.util
import inspect
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer

from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.expansion.files.sidecar import sidecar_tensors
from controlllm.integrations.swift import ControlLLMSwiftCallback, ControlLLMTuner

VERSION = "4.6.0"
INTERFACE = {
    "prepare_model": ("args", "model"),
    "save_pretrained": ("model", "save_directory", "state_dict", "safe_serialization", "kwargs"),
    "from_pretrained": ("model", "model_id", "kwargs"),
}
"""The static methods of ms-swift 4.6.0's `Tuner`, and what they take."""


class SwiftLike(Trainer):
    """Makes callbacks and saves models as `swift.trainers.mixin.SwiftMixin` of 4.6.0 does."""

    def __init__(self, model, args, **kwargs):
        super().__init__(model, args, callbacks=[ControlLLMSwiftCallback(args, self)], **kwargs)

    def _save(self, output_dir=None, state_dict=None):
        folder = output_dir or self.args.output_dir
        ControlLLMTuner.save_pretrained(
            self.model, folder, state_dict=state_dict, safe_serialization=True
        )


def arguments_of_swift(**own):
    return SimpleNamespace(
        callbacks=["controlllm"], model_kwargs={"controlllm": {"num_blocks": 2} | own}
    )


def run(model, rows, args, resume=None):
    """As `swift sft` with this tuner: prepared for a new run, loaded for one that goes on."""
    if resume is None:
        model = ControlLLMTuner.prepare_model(arguments_of_swift(), model)
    else:
        model = ControlLLMTuner.from_pretrained(model, resume, is_trainable=True)
    trainer = SwiftLike(model, args, train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def methods(cls):
    return {name: tuple(inspect.signature(getattr(cls, name)).parameters) for name in INTERFACE}


def test_methods_take_what_swift_gives():
    assert methods(ControlLLMTuner) == INTERFACE
    assert tuple(inspect.signature(ControlLLMSwiftCallback).parameters) == ("args", "trainer")


def test_the_plugin_file_hides_no_package(capsys):
    """Swift puts the folder of an external plugin first on the path."""
    runpy.run_module("controlllm.integrations.swift", run_name="__main__")
    plugin = Path(capsys.readouterr().out.strip())
    assert plugin.is_file()
    names = {path.stem for path in plugin.parent.iterdir()} - {"__pycache__"}
    assert names == {"__init__", "__main__", "_plugin"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"callbacks": []}, "needs --callbacks controlllm"),
        ({"deepspeed": "zero3"}, "--deepspeed .* whole, unpacked"),
        ({"quant_method": "bnb"}, "--quant_method .* not quantised"),
        ({"model_kwargs": {"controlllm": {"nm_blocks": 2}}}, "nm_blocks.*'num_blocks'"),
        ({"model_kwargs": {"controlllm": {"checkpoints": "full"}}}, "controlllm export"),
    ],
)
def test_arguments_that_cannot_work_are_refused(base, changes, message):
    args = SimpleNamespace(**vars(arguments_of_swift()) | changes)
    with pytest.raises(ConfigError, match=message):
        ControlLLMTuner.prepare_model(args, base)
    assert not hasattr(base, "_expansion")


def test_the_config_of_the_page_is_read(base, page_configs):
    (config,) = page_configs("swift")
    config["model_kwargs"]["controlllm"]["num_blocks"] = 2  # of 8: the base here has four layers
    model = ControlLLMTuner.prepare_model(SimpleNamespace(**config), base)
    assert config["tuner_type"] == "controlllm" and len(model.blocks) == 2


def test_without_settings_a_quarter_of_the_layers_is_expanded(base):
    args = SimpleNamespace(callbacks=["controlllm"], model_kwargs=None)
    assert len(ControlLLMTuner.prepare_model(args, base).blocks) == 1


def test_a_run_trains_the_copies_saves_sidecars_and_goes_on(base, base_folder, rows, arguments):
    straight = run(base, rows, arguments())
    checkpoint = f"{straight.args.output_dir}/checkpoint-2"
    assert not Path(checkpoint, "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    resumed = run(base, rows, arguments(save_strategy="no"), checkpoint)
    ours, theirs = sidecar_tensors(straight.model), sidecar_tensors(resumed.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert straight.model.gradient_accumulation_steps == 2
    assert any(value > 0 for value in straight.model.divergence.values())
    frozen = AutoModelForCausalLM.from_pretrained(base_folder)
    ids = torch.tensor(rows["input_ids"])
    straight.model.eval()
    with torch.no_grad(), straight.model.disable_expansion():
        assert torch.equal(straight.model(ids).logits, frozen(ids).logits)


def test_a_checkpoint_infers_as_the_trained_model(base, base_folder, rows, arguments):
    trained = run(base, rows, arguments(max_steps=2)).model.eval()
    again = ControlLLMTuner.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_folder), f"{arguments().output_dir}/checkpoint-2"
    )
    ids = torch.tensor(rows["input_ids"])
    assert torch.equal(again.eval()(ids).logits, trained(ids).logits)


def test_what_a_sidecar_cannot_be_is_refused(base, tmp_path):
    with pytest.raises(CheckpointError, match="holds no sidecar"):
        ControlLLMTuner.from_pretrained(base, str(tmp_path))
    with pytest.raises(ConfigError, match="a model holds one expansion"):
        ControlLLMTuner.from_pretrained(base, str(tmp_path), adapter_name="ref_adapter")
    model = ControlLLMTuner.prepare_model(arguments_of_swift(), base)
    with pytest.raises(ConfigError, match="safetensors only"):
        ControlLLMTuner.save_pretrained(model, str(tmp_path), safe_serialization=False)


def test_the_interface_is_swifts():
    module = pytest.importorskip("swift.tuner_plugin", reason="needs ms-swift (not in CI)")
    assert methods(module.Tuner) == INTERFACE
    assert issubclass(ControlLLMTuner, module.Tuner)


def test_swift_imports_the_plugin_file():
    pytest.importorskip("swift.tuner_plugin", reason="needs ms-swift (not in CI)")
    from swift.callbacks import callbacks_map
    from swift.tuner_plugin import tuners_map
    from swift.utils import import_external_file

    folder = Path(importlib.util.find_spec("controlllm.integrations.swift").origin).parent
    import_external_file(str(folder / "_plugin.py"))
    assert tuners_map["controlllm"] is ControlLLMTuner
    assert callbacks_map["controlllm"] is ControlLLMSwiftCallback


def test_swift_knows_every_setting_of_the_page(page_configs):
    pytest.importorskip("swift.arguments", reason="needs ms-swift (not in CI)")
    from dataclasses import fields

    from swift.arguments import SftArguments

    (config,) = page_configs("swift")
    assert set(config) <= {field.name for field in fields(SftArguments)}
