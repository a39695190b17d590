"""`import controlllm` is light, and leaves no trace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from controlllm import expand
from controlllm.checkpoint import (
    TrainingState,
    describe_model,
    export,
    save_checkpoint,
    trained_tensors,
)
from controlllm.expansion.files.adapter_config import AdapterConfig
from controlllm.expansion.hub.peft import add_adapters

HEAVY = [
    "accelerate",
    "datasets",
    "grain",
    "lm_eval",
    "matplotlib",
    "pandas",
    "peft",
    "pyarrow",
    "tensorboard",
    "transformers.modeling_utils",
    "transformers.trainer",
    "trl",
    "wandb",
]

# Everything that a patch could replace: functions and classes of the modules that torch and
# transformers have loaded before, and the methods of the classes that models are made of.
WATCH = """
import json, os, sys
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig  # for registering
{before}

def seen():
    things = {{}}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("torch", "transformers"):
            for key, value in list(vars(module).items()):
                if callable(value):
                    things[name, key] = value
    for owner in (torch.nn.Module, torch.Tensor, PreTrainedConfig, {classes}):
        things.update({{(owner.__qualname__, key): value for key, value in vars(owner).items()}})
    return things

environment, modules, before = dict(os.environ), set(sys.modules), seen()
import controlllm
{use}
after = seen()
print(json.dumps({{
    "modules": sorted(set(sys.modules) - modules),
    "environment": environment == dict(os.environ),
    "patched": [str(key) for key, value in before.items() if after.get(key) is not value],
}}))
"""


def run_in_a_new_process(folder: Path, before: str = "", classes: str = "", use: str = "") -> dict:
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {
        "PYTHONPATH": str(source),
        "HOME": str(folder),
        "HF_HOME": str(folder),
    }
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    script = WATCH.format(before=before, classes=classes, use=use)
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("empty")
    return run_in_a_new_process(folder) | {"files": [str(path) for path in folder.rglob("*")]}


def test_nothing_heavy_is_imported(imported):
    heavy = [name for name in HEAVY if name in imported["modules"]]
    assert not heavy, f"import controlllm imports {heavy}"


def test_no_file_is_created_and_no_environment_variable_changed(imported):
    assert imported["files"] == []
    assert imported["environment"]


def test_nothing_is_patched(imported):
    assert imported["patched"] == []


USED = "DynamicCache, GenerationMixin, LlamaForCausalLM, PreTrainedModel, StaticCache"


def test_using_the_method_patches_nothing_either(tmp_path):
    seen = run_in_a_new_process(
        tmp_path,
        before=f"from transformers import {USED}",
        classes=USED,
        use="""
config = transformers.LlamaConfig(
    vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
)
model = controlllm.expand(LlamaForCausalLM(config), controlllm.ExpansionConfig(num_blocks=1))
model.generate(torch.tensor([[1, 2]]), max_new_tokens=2, do_sample=False)
""",
    )
    assert seen["patched"] == []


INSPECT = """
import sys
sys.argv = ["controlllm", "inspect", sys.argv[1]]
from controlllm.cli import main
code = main()
heavy = {"torch", "transformers", "huggingface_hub"} & set(sys.modules)
sys.exit(code or f"imported: {sorted(heavy)}" if code or heavy else 0)
"""


@pytest.mark.parametrize("form", ["sidecar", "adapter", "full", "plain", "run", "checkpoint"])
def test_looking_into_a_folder_needs_neither_torch_nor_transformers(tmp_path, pico_llama, form):
    """They take seconds to import, and `inspect` reads configs and headers only."""
    model, folder = pico_llama(), tmp_path / form
    if form == "adapter":
        add_adapters(model, AdapterConfig())
    elif form != "plain":
        model = expand(model, num_blocks=1)
    if form in ("run", "checkpoint"):
        state = TrainingState(1, trained_tensors(model), describe_model(model))
        checkpoint = save_checkpoint(folder, state)
        folder = checkpoint if form == "checkpoint" else folder
    else:
        export(model, folder, "full" if form == "plain" else form)
    result = subprocess.run(
        [sys.executable, "-c", INSPECT, str(folder)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "| total " in result.stdout


HELP = """
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
sys.argv = ["controlllm"]
from controlllm.cli import VERBS, main
from controlllm.cli.data import COMMANDS
verbs = [[verb] for verb in VERBS if verb != "data"]
for words in [*verbs, *(["data", name] for name in COMMANDS)]:
    for option in ("--help", "--mistyped=1"):
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as told:
            code = main([*words, option])
        assert "--mistyped is not" in told.getvalue() if code else option == "--help", words
        heavy = {"torch", "transformers", "huggingface_hub"} & set(sys.modules)
        assert not heavy, (words, option, heavy)
"""


def test_help_and_mistyped_options_need_neither_torch_nor_transformers():
    result = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


TRAIN = """
import sys
import controlllm
from controlllm.checkpoint import export
from controlllm.train import RunConfig, train
base, data, out = sys.argv[1:]
result = train(RunConfig.from_dict({
    "model": {"model_name_or_path": base},
    "data": {"train": [{"path": data}], "max_length": 16},
    "training": {"output_dir": out, "max_steps": 1, "per_device_train_batch_size": 1},
}))
export(result.model, out + "/exported", "full")
"""


def test_a_script_that_trains_and_exports_prints_nothing_that_is_not_ours(
    tmp_path, pico_llama, pico_tokenizer
):
    """Not even what torchao, DeepSpeed and transformers say where they are installed."""
    pico_llama().save_pretrained(tmp_path / "base")
    pico_tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "data.jsonl").write_text('{"text": "one row of text to train on"}\n')
    script = [TRAIN, *(str(tmp_path / name) for name in ("base", "data.jsonl", "run"))]
    result = subprocess.run([sys.executable, "-c", *script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert [line[:6] for line in result.stdout.splitlines()] == ["step 1"]
