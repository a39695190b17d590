"""Each command once on a small real run, with what it must print and write."""

import dataclasses
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from docstring_parser import parse_from_object

from controlllm.checkpoint import inspect_folder, list_checkpoints, load_model
from controlllm.cli import VERBS
from controlllm.cli.calibrate import CalibrateOptions
from controlllm.cli.chat import ChatOptions
from controlllm.cli.combine import CombineOptions
from controlllm.cli.compare import CompareOptions
from controlllm.cli.data_inspect import InspectData
from controlllm.cli.data_prepare import PrepareData
from controlllm.cli.env import EnvOptions
from controlllm.cli.export import ExportOptions
from controlllm.cli.inspect import InspectOptions
from controlllm.cli.kit.eval_options import EvalOptions
from controlllm.cli.kit.sets import UNREAD
from controlllm.cli.kit.stage_sets import calibrate_defaults
from controlllm.cli.plan import PlanOptions
from controlllm.cli.probe import PROBE_UNREAD, ProbeOptions
from controlllm.cli.report import ReportOptions
from controlllm.cli.sequence import SEQUENCE_UNREAD, SequenceOptions
from controlllm.cli.serve import ServeOptions
from controlllm.cli.ship import ShipOptions
from controlllm.cli.suites import SuitesOptions
from controlllm.data import DataConfig
from controlllm.demo import DemoConfig
from controlllm.evaluate import OwnTextConfig
from controlllm.train import RunConfig

Cli = Callable[..., tuple[int, str, str]]
OPTIONS = {
    "plan": PlanOptions,
    "train": RunConfig,
    "eval": EvalOptions,
    "calibrate": CalibrateOptions,
    "chat": ChatOptions,
    "export": ExportOptions,
    "combine": CombineOptions,
    "compare": CompareOptions,
    "data inspect": InspectData,
    "data prepare": PrepareData,
    "inspect": InspectOptions,
    "report": ReportOptions,
    "sequence": SequenceOptions,
    "ship": ShipOptions,
    "suites": SuitesOptions,
    "demo": DemoConfig,
    "serve": ServeOptions,
    "probe": ProbeOptions,
    "env": EnvOptions,
}


HIDDEN = {
    "eval": UNREAD,
    "calibrate": UNREAD,
    "probe": PROBE_UNREAD,
    "sequence": SEQUENCE_UNREAD,
}
"""Settings of a section that a command does not read, and so does not offer."""
SECTIONS = {DataConfig: "data", OwnTextConfig: "own_text"}


def sections(options: type) -> list[type]:
    """A dataclass of options and those nested in it."""
    hints = get_type_hints(options).values()
    nested = [hint for hint in hints if dataclasses.is_dataclass(hint)]
    return [options, *(inner for section in nested for inner in sections(section))]


def descriptions(options: type) -> dict[str, str | None]:
    """Field -> its docstring; inherited ones too."""
    return {
        param.arg_name: param.description
        for cls in reversed(options.__mro__)
        if dataclasses.is_dataclass(cls)
        for param in parse_from_object(cls).params
    }


def run_file(workplace: Path, folder: Path, **training: object) -> Path:
    """The run file of the workplace with another output folder and other training settings."""
    settings = yaml.safe_load((workplace / "run.yaml").read_text())
    settings["training"] |= {"output_dir": str(folder / "run"), **training}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_help_names_every_command(cli: Cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    assert all(f"  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_command_explains_its_options(cli: Cli, verb: str) -> None:
    code, out, _ = cli(verb, "--help")
    assert code == 0
    assert f"usage: controlllm {verb}" in out


def test_every_command_has_its_options_here() -> None:
    assert {command.split()[0] for command in OPTIONS} == set(VERBS)


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_is_explained_in_help(cli: Cli, command: str) -> None:
    text = "".join(cli(*command.split(), "--help")[1].split())
    explained = 0
    for section in sections(OPTIONS[command]):
        described = descriptions(section)
        for field in dataclasses.fields(section):
            assert described.get(field.name), f"{section.__name__}.{field.name} has no docstring"
            if f"{SECTIONS.get(section)}.{field.name}" in HIDDEN.get(command, ()):
                continue
            if not dataclasses.is_dataclass(get_type_hints(section)[field.name]):
                assert "".join(described[field.name].split()) in text
                explained += 1
    assert explained > 0 or command == "env"


def test_train_writes_a_run_that_can_be_repeated(finished_run: Path) -> None:
    saved = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert saved["training"]["max_steps"] == 3
    assert saved["expansion"]["num_blocks"] == 2
    assert (finished_run / "checkpoint-3" / "manifest.json").is_file()


def test_command_line_wins_over_yaml_and_yaml_over_preset(
    cli: Cli, workplace: Path, tmp_path: Path
) -> None:
    path = run_file(workplace, tmp_path, alpha_sampling=[0.1, 0.9])
    code, out, _ = cli(
        "train", path, "--preset=retain", "--training.max_steps", 7, "--print_config"
    )
    printed = yaml.safe_load(out)
    assert code == 0
    assert printed["expansion"]["divergence"] == "nmse"  # the preset
    assert printed["training"]["alpha_sampling"] == [0.1, 0.9]  # YAML
    assert printed["training"]["max_steps"] == 7  # the command line
    assert printed["expansion"]["num_blocks"] == 2


def test_the_command_line_takes_a_preset_back(cli: Cli, workplace: Path, tmp_path: Path) -> None:
    path = run_file(workplace, tmp_path)
    path.write_text(path.read_text() + "preset: retain\n")
    code, out, _ = cli("train", path, "--preset", "null", "--print_config")
    printed = yaml.safe_load(out)
    assert code == 0
    assert printed["preset"] is None and printed["training"]["alpha_sampling"] is None


def test_preset_named_in_yaml(cli: Cli, workplace: Path, tmp_path: Path) -> None:
    path = run_file(workplace, tmp_path)
    path.write_text(path.read_text() + "preset: retain\n")
    _, out, _ = cli("train", "--config", path, "--print_config")
    assert yaml.safe_load(out)["expansion"]["expand_ends"] is True


def test_inspect_shows_run_and_sidecar(cli: Cli, finished_run: Path, tmp_path: Path) -> None:
    code, out, _ = cli("inspect", finished_run, "--output", tmp_path / "i.json")
    assert code == 0
    assert "model.layers.1 | concat" in out
    assert "checkpoint-3: training checkpoint" in out
    assert "dial: not turned" in out
    values = json.loads((tmp_path / "i.json").read_text())
    assert values["kind"] == "training checkpoint"
    assert [part["kind"] for part in values["parts"]] == ["concat", "concat", "base"]


def test_eval_measures_the_sets_of_the_run_and_given_files(
    cli: Cli, finished_run: Path, workplace: Path, tmp_path: Path
) -> None:
    (tmp_path / "more.txt").write_text("something else " * 10)
    code, out, _ = cli(
        "eval", finished_run, "--files", tmp_path / "more.txt", "--output", tmp_path / "e.json"
    )
    assert code == 0
    losses = json.loads((tmp_path / "e.json").read_text())["losses"]
    assert set(losses) == {"more", "new", "old"}
    assert losses["new"]["loss"] < losses["new"]["base_loss"] - 0.01
    assert "| base loss |" in out
    logged = [json.loads(line) for line in (finished_run / "metrics.jsonl").open()]
    last = next(row for row in reversed(logged) if "learn/new/loss" in row)
    assert losses["new"]["loss"] == pytest.approx(last["learn/new/loss"], abs=1e-5)


def test_eval_at_alpha_zero_is_the_base(cli: Cli, finished_run: Path, tmp_path: Path) -> None:
    cli("eval", finished_run, "--alpha", 0, "--output", tmp_path / "e.json")
    losses = json.loads((tmp_path / "e.json").read_text())["losses"]
    assert losses["new"]["loss"] == losses["new"]["base_loss"]


def test_eval_of_a_plain_model_with_and_without_a_reference(cli: Cli, workplace: Path) -> None:
    words = ("eval", workplace / "base", "--files", workplace / "new.txt", "--data.max_length", 48)
    code, out, _ = cli(*words)
    assert code == 0
    assert "base loss" not in out
    code, out, _ = cli(*words, "--reference", workplace / "base")
    assert code == 0
    assert "| base loss |" in out


def test_eval_runs_tasks(cli: Cli, finished_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [{"text": "to be or", "choices": [" not", " x"], "label": 0}] * 3
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "tiny_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
    }
    (tmp_path / "tiny_choice.yaml").write_text(yaml.safe_dump(task))
    kept = ("--save_to", tmp_path / "out", "--store", tmp_path / "store")
    words = ("eval", finished_run, "--tasks", "tiny_choice", "--include_path", tmp_path, *kept)
    code, out, _ = cli(*words, "--data.learn", "[]", "--data.retain", "[]")
    assert code == 0
    assert "tiny_choice" in out
    assert "difference" in out


def test_calibrate_writes_the_alpha_into_the_sidecar(
    cli: Cli, sidecar: Path, workplace: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "side"
    shutil.copytree(sidecar, folder)
    sets = [
        f"--data.{group}=[{{path: {workplace / name}}}]"
        for group, name in (("learn", "new.txt"), ("retain", "old.txt"))
    ]
    words = ("--alphas", "[0.5, 1.0]", "--max_forgetting", 10, "--data.max_length", 48)
    code, out, _ = cli("calibrate", folder, *sets, *words)
    assert code == 0
    assert "chosen" in out
    dial = json.loads((folder / "sidecar_config.json").read_text())["expansion"]["dial"]
    curve = json.loads((folder / "calibration.json").read_text())
    assert dial == curve["chosen"]
    assert dial > 0
    assert (folder / "calibration.png").stat().st_size > 1000
    model, _ = load_model(folder)
    assert set(model.alphas().values()) == {dial}
    assert f"dial: {dial:g}\n" in cli("inspect", folder)[1]


def test_without_old_text_the_base_writes_what_is_to_be_retained(
    cli: Cli, workplace: Path, finished_run: Path, tmp_path: Path
) -> None:
    words = ("--data.retain=[]", "--own_text.num_sequences=8", "--training.output_dir", tmp_path)
    code, out, _ = cli("train", workplace / "run.yaml", *words)
    assert code == 0
    promise = r"own_text: KL <= \d\.\d{3} nats per token \(95 %, 8 sequences, [\d,]+ tokens\); "
    assert re.search(f"^{promise}total variation <= ", out, re.MULTILINE)
    sweep = ("--alphas=[0.5]", "--refine_steps=0", "--max_forgetting=0.01")
    code, out, err = cli("calibrate", tmp_path, *sweep)
    assert code == 0, err
    assert "KL(base‖trained) of own_text" in out
    assert re.search(promise.replace("own_text", r"own_text at alpha \S+"), out)
    kept = json.loads((tmp_path / "calibrated" / "calibration.json").read_text())
    chosen = next(p for p in kept["points"] if p["alpha"] == kept["chosen"])
    assert chosen["retain"]["own_text"]["kl"] <= 0.01
    # The certificate stands on other sequences than those that chose.
    assert kept["certificates"]["own_text"]["sequences"] == 8
    if kept["chosen"]:
        assert kept["certificates"]["own_text"]["kl"] != chosen["retain"]["own_text"]["kl"]
    code, _, err = cli("calibrate", tmp_path, *sweep, "--own_text.measure=false")
    assert code == 2
    assert "own_text.measure=false needs data.retain" in err


def test_what_calibrate_does_not_use_of_own_text_is_told(
    cli: Cli, finished_run: Path, tmp_path: Path
) -> None:
    sweep = ("--alphas=[1.0]", "--refine_steps=0", "--max_forgetting=10")
    words = ("calibrate", finished_run, *sweep, "--own_text.num_sequences=8")
    code, _, err = cli(*words, "--output", tmp_path / "a")
    assert code == 0
    assert "own_text.num_sequences=8 would not be used: own text is not measured" in err
    code, _, err = cli(*words, "--own_text.measure=true", "--output", tmp_path / "b")
    assert code == 0 and "would not be used" not in err


@pytest.mark.parametrize("place", ["inside", "outside", "trusted"])
def test_calibrate_writes_from_the_runs_prompts_or_says_why_not(
    finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    prompts = (run if place == "inside" else tmp_path) / "prompts.txt"
    prompts.write_text("the cat\n")
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["own_text"] = {"prompts": str(prompts), "measure": True}
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    found = calibrate_defaults({"model": str(run)}, place == "trusted")["own_text"]["prompts"]
    assert found == (None if place == "outside" else str(prompts))
    assert ("is no file in its folder" in caplog.text) == (place == "outside")


def test_a_sidecar_in_few_bits_is_exported_looked_at_and_calibrated(
    cli: Cli, sidecar: Path, workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = tmp_path / "small"
    assert cli("export", sidecar, small, "--form", "sidecar", "--bits", 2)[0] == 0
    assert "measure again with `controlllm calibrate`" in caplog.text
    assert "2 bits a number" in cli("inspect", small)[1]
    parts = [inspect_folder(folder).total for folder in (sidecar, small)]
    assert parts[0].trained == parts[1].trained
    assert parts[0].bytes > 3 * parts[1].bytes
    before = (small / "sidecar.safetensors").read_bytes()
    sets = [
        f"--data.{group}=[{{path: {workplace / name}}}]"
        for group, name in (("learn", "new.txt"), ("retain", "old.txt"))
    ]
    words = ("--alphas", "[0.5]", "--max_forgetting", 10, "--data.max_length", 48)
    for output in ((), ("--output", tmp_path / "out")):
        assert cli("calibrate", small, *sets, *words, *output)[0] == 0
    for folder in (small, tmp_path / "out"):
        assert (folder / "sidecar.safetensors").read_bytes() == before
        dial = json.loads((folder / "sidecar_config.json").read_text())["expansion"]["dial"]
        assert set(load_model(folder)[0].alphas().values()) == {dial}
    for words, message in (
        (("--form", "full", "--bits", 2), "only form=sidecar reads it"),
        (("--form", "sidecar", "--bits", 3), "bits=3; allowed: 1, 2, 4"),
    ):
        code, _, err = cli("export", sidecar, tmp_path / "no", *words)
        assert code == 2
        assert message in err


def test_calibrate_a_run_writes_a_sidecar_beside_it(
    cli: Cli, workplace: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    words = ("calibrate", run, "--alphas=[0.5]", "--refine_steps=0", "--max_forgetting=0")
    code, _, err = cli(*words)
    assert (code, err) == (0, "")
    assert (run / "calibrated" / "sidecar.safetensors").is_file()
    code, _, err = cli(*words)
    assert code == 2
    assert "not empty" in err


@pytest.mark.parametrize("form", ["full", "collapsed"])
def test_export_writes_the_form(cli: Cli, finished_run: Path, tmp_path: Path, form: str) -> None:
    code, out, _ = cli("export", finished_run, tmp_path / "out", "--form", form)
    assert code == 0
    assert f"{form} form" in out
    model, tokenizer = load_model(tmp_path / "out")
    assert model.config.model_type == ("controlllm" if form == "full" else "llama")
    assert tokenizer("a").input_ids == [1, 100]


def test_export_of_all_checkpoints(cli: Cli, finished_run: Path, tmp_path: Path) -> None:
    names = [checkpoint.name for checkpoint in list_checkpoints(finished_run)]
    words = ("export", finished_run, tmp_path / "all", "--form", "sidecar")
    code, out, _ = cli(*words, "--all_checkpoints")
    assert (code, out.count("sidecar form")) == (0, len(names))
    assert sorted(folder.name for folder in (tmp_path / "all").iterdir()) == sorted(names)
    code, out, _ = cli(*words, "--all_checkpoints", "true")
    assert (code, out.count("is there already")) == (0, len(names))
    code, _, err = cli("export", tmp_path, tmp_path / "none", "--all_checkpoints", "true")
    assert code == 2
    assert "is no run folder with checkpoints" in err


@pytest.mark.parametrize("form", ["sidecar", "full", "collapsed"])
def test_combine_two_models(cli: Cli, finished_run: Path, sidecar: Path, tmp_path, form) -> None:
    code, out, _ = cli("combine", finished_run, sidecar, tmp_path / "out", "--form", form)
    assert code == 0
    assert f"{form} form" in out
    load_model(tmp_path / "out")


def test_chat_through_a_pipe(cli: Cli, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("chat", finished_run, "--generation.max_new_tokens", 3, "--chat_template", "plain")
    answers = []
    for alpha in (0, 0.1):
        monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\nagain\n"))
        code, out, _ = cli(*words, "--alpha", alpha)
        assert code == 0
        answers.append(out)
    assert all(answers)


def test_chat_continues_text_where_no_template_is_wanted(
    cli: Cli, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(sys, "stdin", io.StringIO("to be\n"))
    words = ("chat", finished_run, "--generation.max_new_tokens", 3, "--chat_template", "none")
    code, out, _ = cli(*words)
    assert code == 0
    model, tokenizer = load_model(finished_run)
    ids = tokenizer("to be", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    assert out == f"{tokenizer.decode(expected, skip_special_tokens=True)}\n"


def test_env_names_versions_and_devices(cli: Cli) -> None:
    import torch

    code, out, _ = cli("env")
    assert code == 0
    assert torch.__version__ in out
    assert "sdpa" in out


def test_interrupted_training_says_how_to_go_on_and_goes_on(
    cli: Cli, workplace: Path, tmp_path: Path
) -> None:
    path = run_file(workplace, tmp_path, max_steps=100_000, save_steps=2, eval_steps=100_000)
    words = [sys.executable, "-m", "controlllm.cli", "train", str(path)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    # Which one: the oldest goes as new ones come, so none stays to be waited for.
    while not [*(tmp_path / "run").glob("checkpoint-*")] and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Stopping after this step, and saving" in err
    assert "stopped because preempted" in out and "Run the same command again" in out
    assert "Traceback" not in err
    code, out, err = cli("train", path, "--training.max_tokens", 1)
    assert code == 0, err
    assert "max_tokens" in out


@pytest.mark.parametrize("verb", ["compare", "inspect", "serve"])
def test_help_waits_for_no_heavy_package(verb):
    code = (
        f"import sys; sys.argv = ['controlllm', '{verb}', '--help']\n"
        "from controlllm.cli import main\n"
        "main()\n"
        "sys.exit(str(sorted({'torch', 'transformers'} & {*sys.modules})).strip('[]') or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"usage: controlllm {verb}" in result.stdout
