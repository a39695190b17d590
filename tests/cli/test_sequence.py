"""`sequence`, by the real command, on two runs that went on from one another."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from controlllm.checkpoint import export, inspect_folder, load_model, make_form
from controlllm.expansion import ExpansionConfig, expand

TEXTS = {"a": "to be or not to be, that is the question. ", "b": "7 8 9 and 10 make 34, again. "}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, workplace):
    """Run a from the base, and run b from it."""
    from controlllm.cli import main

    folder = tmp_path_factory.mktemp("sequence")
    settings = yaml.safe_load((workplace / "run.yaml").read_text())
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text * 12)
        for kind in ("train", "learn"):
            settings["data"][kind] = [{"path": str(folder / f"{name}.txt")}]
        settings["training"] |= {"output_dir": str(folder / name), "max_steps": 12}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        assert main(["train", str(folder / f"{name}.yaml")]) == 0
        settings["model"]["model_name_or_path"] = str(folder / name)
        settings.pop("expansion", None)
    return folder


OWN = ("--own_text.num_sequences", 8, "--own_text.length", 12)


def test_the_matrix_of_two_runs(cli, runs) -> None:
    code, out, err = cli("sequence", runs / "a", runs / "b", "--joint", runs / "b", *OWN)
    assert code == 0, err
    assert "after a" in out and "after b" in out and "BWT" in out and "own_text" in out
    found = json.loads((runs / "b" / "sequence" / "sequence.json").read_text())
    losses = found["losses"]
    assert losses["base"]["a"] > losses["a"]["a"] and losses["a"]["b"] > losses["b"]["b"]
    assert found["ACC"] == pytest.approx(-(losses["b"]["a"] + losses["b"]["b"]) / 2)
    assert found["BWT"]["estimate"] == pytest.approx(losses["a"]["a"] - losses["b"]["a"])
    assert found["FWT"]["estimate"] == pytest.approx(losses["base"]["b"] - losses["a"]["b"])
    assert found["joint"] == losses["b"]
    for kept in found["kept"].values():
        assert kept["own_text"]["kl"] > 0 and kept["own_text"]["tokens"] > 0
        assert [*kept] == ["own_text", "old"]
    assert (runs / "b" / "sequence" / "sequence.png").stat().st_size > 5_000


def test_what_eval_says_of_a_stage_is_what_stands_in_its_row(cli, runs, tmp_path) -> None:
    assert cli("sequence", runs / "a", runs / "b", "--output", tmp_path, *OWN)[0] == 0
    assert cli("eval", runs / "a", "--output", tmp_path / "a.json")[0] == 0
    found = json.loads((tmp_path / "sequence.json").read_text())
    told = json.loads((tmp_path / "a.json").read_text())
    sets = told["losses"]
    assert found["losses"]["a"]["a"] == pytest.approx(sets["a"]["loss"], abs=1e-5)
    assert found["kept"]["a"]["old"]["kl"] == pytest.approx(sets["old"]["kl"], abs=1e-5)


def test_own_text_is_kept_where_it_is_told_and_its_settings_are_not_ignored(
    cli, runs, tmp_path
) -> None:
    words = ("sequence", runs / "a", runs / "b", "--output", tmp_path)
    assert cli(*words, *OWN, "--own_text.cache_dir", tmp_path / "kept")[0] == 0
    assert [*(tmp_path / "kept").iterdir()] and not (tmp_path / "own_text").exists()
    code, _, err = cli(*words, *OWN[:2], "--own_text.measure", "false")
    assert code == 0 and "own_text.num_sequences=8 would not be used" in err


def test_a_run_that_diverged_is_named_and_all_else_is_measured(cli, runs, tmp_path) -> None:
    model, tokenizer = load_model(runs / "b")
    next(iter(model.blocks.values())).expanded.mlp.down_proj.weight.data.fill_(1e38)
    export(model, tmp_path / "d", make_form("full"), tokenizer)
    shutil.copy(runs / "b" / "config.yaml", tmp_path / "d")
    words = ("--output", tmp_path / "out", "--own_text.measure", "false")
    code, out, err = cli("sequence", tmp_path / "d", runs / "a", *words)
    assert code == 0, err
    assert "after d: the loss on d, a, old is not a number" in err
    found = json.loads((tmp_path / "out" / "sequence.json").read_text(), parse_constant=pytest.fail)
    assert found["losses"]["d"] == {"d": None, "a": None} and found["losses"]["a"]["a"] > 0
    assert found["BWT"]["estimate"] is None and "after a" in out


def test_tokens_that_the_base_lacks_are_refused_before_anything_is_written(
    cli, runs, workplace, tmp_path
) -> None:
    base, tokenizer = load_model(workplace / "base")
    model = expand(base, ExpansionConfig(num_blocks=2, expand_ends=True))
    tokenizer.add_tokens(["question"])
    model.resize_token_embeddings(len(tokenizer))
    export(model, tmp_path / "d", make_form("full"), tokenizer)
    shutil.copy(runs / "a" / "config.yaml", tmp_path / "d")
    code, _, err = cli("sequence", tmp_path / "d", runs / "b", "--output", tmp_path / "out", *OWN)
    assert code == 2 and "the run d has tokens that the base of the first run does not know" in err
    assert not (tmp_path / "out" / "own_text").exists()


@pytest.fixture
def changed(runs, tmp_path):
    """`changed(**data)`: a copy of run b whose config says that of its data."""

    def make(**data) -> Path:
        shutil.copytree(runs / "b", tmp_path / "b")
        settings = yaml.safe_load((runs / "b" / "config.yaml").read_text())
        settings["data"] |= data
        (tmp_path / "b" / "config.yaml").write_text(yaml.safe_dump(settings))
        return tmp_path / "b"

    return make


def test_what_is_left_out_of_a_strangers_run_is_told_with_what_can_be_done(
    cli, runs, changed, caplog
) -> None:
    run = changed(learn=[{"path": "hdfs://nowhere/rows.txt"}], plugins=["theirs.py"])
    code, _, err = cli("sequence", runs / "a", run)
    assert code == 2 and f"{run} has no held-out sets that are read" in err
    for part in (run, "data.learn: hdfs://nowhere/rows.txt", "theirs.py", "--trust_config true"):
        assert str(part) in caplog.text
    assert "--data" not in caplog.text


def test_sets_of_one_name_are_both_measured(cli, runs, changed, tmp_path) -> None:
    (tmp_path / "other.txt").write_text("to have and have not. " * 12)
    run = changed(retain=[{"path": str(tmp_path / "other.txt"), "name": "old"}])
    assert cli("sequence", runs / "a", run, "--own_text.measure", "false")[0] == 0
    kept = json.loads((run / "sequence" / "sequence.json").read_text())["kept"]
    assert [*kept["b"]] == ["old", "b/old"]
    assert kept["b"]["old"]["base_loss"] != kept["b"]["b/old"]["base_loss"]


def test_another_order_than_the_recorded_one_is_told(cli, runs, caplog) -> None:
    settings = yaml.safe_load((runs / "b.yaml").read_text())
    settings["training"] |= {"output_dir": str(runs / "c"), "max_steps": 2, "eval_steps": 2}
    del settings["model"]
    path = runs / "c.yaml"
    path.write_text(yaml.safe_dump(settings | {"continue_from": str(runs / "b")}))
    words = ("--continue_by", "fold", "--own_text.measure", "false")
    assert cli("train", path, *words)[0] == 0
    quick = ("--own_text.measure", "false")
    assert cli("sequence", runs / "a", runs / "c", *quick)[0] == 0
    assert f"records that it went on from 'b', not from {runs / 'a'}" in caplog.text
    caplog.clear()
    assert cli("sequence", runs / "c", runs / "a", *quick)[0] == 0
    assert "the row 'base' is that stage" in caplog.text
    caplog.clear()
    assert cli("sequence", runs / "b", runs / "c", *quick)[0] == 0
    assert "records" not in caplog.text and "that stage" not in caplog.text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a"], "a sequence has two runs at least"),
        (["a", "a"], "the name of another row"),
        (["a", "nowhere"], "nowhere"),
        (["a", "b", "--own_text.length", 3], "own_text.length"),
        (["a", "b", "--own_text.precision", 0.1], "own_text.precision is not read by `sequence`"),
    ],
)
def test_bad_input_is_told(cli, runs, words, told) -> None:
    paths = [runs / word if isinstance(word, str) and word[0] != "-" else word for word in words]
    code, _, err = cli("sequence", *paths)
    assert code == 2 and told in err


@pytest.mark.slow
def test_the_recipe_runs(tmp_path: Path) -> None:
    """Three runs one after the other and the table, by the one command, in small."""
    command = tmp_path / "controlllm"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m controlllm.cli "$@"\n')
    command.chmod(0o755)
    small = {
        "--training.max_steps": 2,
        "--training.eval_steps": 2,
        "--rehearsal.num_sequences": 8,
        "--rehearsal.length": 16,
        "--own_text.num_sequences": 8,
        "--data.max_length": 32,
        "--data.max_eval_samples": 2,
    }
    words = [str(word) for pair in small.items() for word in pair]
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        ["bash", "recipes/sequence/run.sh", str(tmp_path / "runs"), *words],
        cwd=root,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
    )
    record = json.loads((tmp_path / "runs" / "c" / "sequence" / "sequence.json").read_text())
    assert record["tasks"] == ["a", "b", "c"] and [*record["losses"]] == ["base", "a", "b", "c"]
    parents = inspect_folder(tmp_path / "runs" / "c").parents
    assert [(parent["name"], parent["way"]) for parent in parents] == [("a", "one"), ("b", "one")]
