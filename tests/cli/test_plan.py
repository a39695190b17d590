"""`controlllm plan` from a config alone: in these folders there are no weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from controlllm.cli import main
from controlllm.expansion import expand
from controlllm.train.observe.peaks import required_peak


@pytest.fixture
def config_only(pico_llama: Any, tmp_path: Path) -> str:
    """A folder with the config of a model of 8 layers, and nothing else."""
    folder = tmp_path / "base"
    pico_llama(num_hidden_layers=8).config.save_pretrained(folder)
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    return str(folder)


@pytest.fixture
def run_file(config_only: str, tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {{model_name_or_path: {config_only}}}\n"
        "data: {train: [{path: nowhere.jsonl}], max_length: 32}\n"
        "training: {per_device_train_batch_size: 2}\n"
    )
    return str(path)


def test_every_number_of_blocks_that_fits_is_planned(
    run_file: str, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "plan.json"
    words = ["--world_size", "4", "--output", str(output), "--device_name", "H200", "--mfu", "0.5"]
    assert main(["plan", run_file, *words]) == 0
    said = capsys.readouterr().out
    assert "16 blocks do not fit: 8 layers" in said and "32 blocks do not fit" in said
    assert "1 x 4 processes (fsdp" in said
    plans = json.loads(output.read_text())
    assert [plan["blocks"] for plan in plans] == [2, 4, 8]  # a quarter is the run's own
    assert [plan["trained"] for plan in plans] == [n * plans[0]["trained"] // 2 for n in (2, 4, 8)]
    flops = plans[0]["flops"]["forward"] + plans[0]["flops"]["backward"]
    tokens = 4 * 2 * 32
    speed = 0.5 * 4 * required_peak("H200") * tokens / flops
    assert plans[0]["tokens_per_second"] == pytest.approx(speed)
    assert plans[0]["tokens"] == tokens


def test_full_is_one_plan(run_file: str, capsys: Any) -> None:
    assert main(["plan", run_file, "--method", "full"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| full")]
    assert len(table) == 2


def test_more_processes_hold_less_each(run_file: str, tmp_path: Path, capsys: Any) -> None:
    def memory(*words: str) -> dict[str, int]:
        output = tmp_path / "plan.json"
        assert main(["plan", run_file, "--output", str(output), *words]) == 0
        return dict(json.loads(output.read_text())[0]["memory"])

    alone, parts = memory(), memory("--world_size", "4")
    copies = memory("--world_size", "4", "--parallel.strategy", "ddp")
    for name in ("frozen", "trained", "gradients"):
        assert copies[name] == alone[name]
        assert parts[name] < alone[name] / 2
    assert parts["optimizer"] < alone["optimizer"]


def test_a_sidecar_is_planned_as_it_is_expanded(
    pico_llama: Any, tmp_path: Path, run_file: str, capsys: Any
) -> None:
    base = pico_llama()
    base.save_pretrained(tmp_path / "whole")
    base.config._name_or_path = str(tmp_path / "whole")
    expand(base, layers=[1, 2]).save_sidecar(tmp_path / "sidecar")
    words = ["--model.model_name_or_path", str(tmp_path / "sidecar")]
    assert main(["plan", run_file, *words]) == 0
    said = capsys.readouterr().out
    assert "expanded already" in said and "|      2 |" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device_name", "Abacus"], "no peak rate is known for 'Abacus'; known: A100"),
        (["--mfu", "0"], "mfu=0"),
        (["--world_size", "0"], "at least 1"),
        (["--parallel.strategy", "hsdp", "--parallel.shard_size", "3", "--world_size", "4"], "3"),
        (["--model.model_name_or_path", "/nowhere"], "/nowhere does not exist"),
        (["--expansion.num_blocks", "9"], "only 8 layers"),
    ],
)
def test_what_cannot_be_planned_says_why(
    run_file: str, words: list[str], said: str, capsys: Any
) -> None:
    assert main(["plan", run_file, *words]) == 2
    assert said in capsys.readouterr().err
