"""Wrong input: one line on stderr that says what, where and what to do, and exit code 2."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from controlllm.cli import launch
from controlllm.common.errors import ConfigError

Cli = Callable[..., tuple[int, str, str]]


def fails(result: tuple[int, str, str], *parts: str) -> None:
    """Exit code 2, and one line on stderr with all `parts`."""
    code, _, err = result
    assert code == 2
    assert err.startswith("controlllm: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["trian"], ["'trian'", "Did you mean 'train'?"]),
        (["train", "--training.lerning_rate", "1"], ["Did you mean --training.learning_rate?"]),
        (["train", "--trainin.max_steps=1"], ["Did you mean --training.max_steps?"]),
        (["train", "--max_steps=1"], ["Did you mean --training.max_steps?"]),
        (["train", "--trust_config=maybe"], ["--trust_config=maybe", "true or false"]),
        (["train", "--print_config=skip_default"], ["--print_config=", "true or false"]),
        (["train", "--preset", "retian"], ["preset='retian'", "Did you mean 'retain'?"]),
        (["train", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["train", "--training.max_steps", "many"], ["training.max_steps", "many"]),
        (["train", "--training.max_steps", "-3"], ["training.max_steps=-3", "at least 1"]),
        (["train", "--training.loss_chunk_size", "0"], ["loss_chunk_size=0", "at least 1"]),
        (["train", "--parallel.strategy", "zero"], ["strategy='zero'", "allowed: ddp, fsdp, hsdp"]),
        (
            ["train", "--model.quantize_base=int7"],
            ["quantize_base='int7'", "allowed: bnb_int8", "Did you mean 'int8'?"],
        ),
        (["train", "--expansion.interpolator=lrep"], ["Did you mean 'lerp'?"]),
        (["train", "--data.train", '[{"path": "x", "wieght": 2}]'], ["data.train.weight?"]),
        (["eval"], ["model"]),
        (["eval", "./nowhere", "--files", "a.txt"], ["nowhere does not exist"]),
        (["inspect", "./nowhere"], ["nowhere does not exist"]),
        (["calibrate", "./nowhere"], ["data.learn", "data.retain"]),
        (["export", "x"], ["folder"]),
        (["chat", "./nowhere", "--generation.top_p", "3"], ["top_p=3"]),
        (["chat", "./nowhere", "--generation.tempratur=1"], ["--generation.temperature?"]),
        (["demo", "--max_steps", "0"], ["max_steps=0"]),
    ],
)
def test_wrong_words_are_answered(
    cli: Cli, words: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(cli(*words), *parts)
    assert list(tmp_path.iterdir()) == [], "a refused command must leave nothing"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("training: {lerning_rate: 3}", ["training.lerning_rate", "training.learning_rate?"]),
        ("trainig: {max_steps: 3}", ["trainig", "training?"]),
        ("data: {train: [{pth: x}]}", ["data.train[0].pth", "data.train.path?"]),
        ("training: [", ["not valid YAML"]),
        ("- 1", ["mapping"]),
        ("preset: paperr", ["'paperr'", "'paper'"]),
    ],
)
def test_wrong_run_files_are_named(cli: Cli, tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    code, _, err = cli("train", path)
    assert code == 2
    for part in parts:
        assert part in err


def test_train_without_a_model_is_told_which_setting_to_give(cli: Cli, tmp_path: Path) -> None:
    fails(cli("train", f"--training.output_dir={tmp_path / 'out'}"), "model.model_name_or_path")


def test_non_empty_folders_are_refused(cli: Cli, sidecar: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    fails(cli("export", sidecar, tmp_path), "not empty")
    fails(cli("combine", sidecar, sidecar, tmp_path), "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_sidecar_for_another_base_is_refused(
    cli: Cli, sidecar: Path, tmp_path: Path, pico_llama, pico_tokenizer
) -> None:
    pico_llama(seed=7).save_pretrained(tmp_path / "other")
    pico_tokenizer.save_pretrained(tmp_path / "other")
    words = ("export", sidecar, tmp_path / "out", "--load.base", tmp_path / "other")
    fails(cli(*words), "was trained on", "check_base")
    assert not (tmp_path / "out").exists()


def test_plain_models_have_no_alpha_and_nothing_to_combine(
    cli: Cli, workplace: Path, tmp_path: Path
) -> None:
    base, out = workplace / "base", tmp_path / "out"
    fails(cli("export", base, out, "--alpha", 0.5), "needs an expanded model")
    fails(cli("eval", base, "--files", workplace / "new.txt", "--alpha", 0.5), "expanded")
    fails(cli("combine", base, base, out), "is not expanded")
    fails(cli("eval", base), "nothing to measure")


def test_sets_of_one_name_are_refused(cli: Cli, workplace: Path) -> None:
    files = f"{workplace / 'new.txt'},{workplace / 'new.txt'}"
    fails(cli("eval", workplace / "base", "--files", files), "['new']")


def test_a_checkpoint_that_is_damaged_is_named(cli: Cli, tmp_path: Path, finished_run) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "checkpoint-3" / "state.json").write_text("{}")
    code, _, err = cli("export", run / "checkpoint-3", tmp_path / "out")
    assert code == 2
    assert "state.json is truncated or changed" in err


def test_debug_shows_the_traceback(cli: Cli) -> None:
    with pytest.raises(ConfigError):
        cli("trian", "--debug")


def test_unwritable_output_is_an_error_of_ours(cli: Cli, finished_run: Path) -> None:
    fails(cli("inspect", finished_run, "--output", "/proc/nowhere/i.json"), "cannot write")


@pytest.mark.parametrize("verb", ["calibrate", "eval"])
def test_a_forgotten_model_is_named_inside_a_run_folder_too(
    cli: Cli, finished_run: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(finished_run)
    fails(cli(verb, "--batch_size", 4), f"{verb} needs model")


def test_the_program_itself_exits_with_the_code() -> None:
    words = [sys.executable, "-m", "controlllm", "trian"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1


def test_nobody_reads_on(finished_run: Path) -> None:
    """`| head -1`: no traceback."""
    words = [sys.executable, "-m", "controlllm", "inspect", str(finished_run)]
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert result.returncode == 141
    assert result.stderr == ""


def test_help_imports_neither_the_parser_nor_the_trainer() -> None:
    program = (
        "import json, sys\n"
        "from controlllm.cli import main\n"
        "main(['--help'])\n"
        "modules = ('jsonargparse', 'controlllm.train', 'datasets')\n"
        "heavy = [name for name in modules if name in sys.modules]\n"
        "print(json.dumps(heavy), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert json.loads(result.stderr.splitlines()[-1]) == []


def test_the_process_that_failed_first_is_the_one_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher ends the others itself, and finds them failed, too."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    failures = {
        rank: ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file=str(tmp_path / "e"))
        for rank, code in ((0, -signal.SIGTERM), (1, -signal.SIGKILL))
    }
    failures[0].timestamp, failures[1].timestamp = 20, 10
    assert launch._code_of(ChildFailedError("train", failures)) == launch.FAILED
    assert capsys.readouterr().err == "controlllm: process 1 was killed by SIGKILL\n"
