"""`data inspect` and `data prepare`: what they print and write, on small texts and on real rows."""

import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.processes import start

from controlllm.cli import main
from controlllm.cli.data import COMMANDS
from controlllm.common.errors import DataError

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared tokens go into the test's folder; no colour unless the test says so."""
    monkeypatch.setenv("CONTROLLLM_CACHE", str(tmp_path / "cache"))
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("cli.sets", "train.bench", "common.lock"):  # import-linter disables them.
        monkeypatch.setattr(logging.getLogger(f"controlllm.{name}"), "disabled", False)
    return tmp_path / "cache" / "data"


def run_file(workplace: Path, folder: Path, **data: Any) -> Path:
    """The run file of the workplace with other data, and without its model's weights."""
    settings = yaml.safe_load((workplace / "run.yaml").read_text())
    settings["data"] |= data
    settings["training"]["output_dir"] = str(folder / "run")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


# --- inspect ---

SAME_FILE = (
    "warning: the only row of data.learn 'new' is in data.train 'new', too: its loss is not "
    "held out; hold rows out with `part`, or use other rows.\n"
)


def test_inspect_shows_every_source_and_the_mix(cli: Cli, workplace: Path) -> None:
    code, out, err = cli("data", "inspect", workplace / "run.yaml")
    assert (code, err) == (0, SAME_FILE)
    assert [line for line in out.splitlines() if line[:1].isalpha()] == [
        f"train new  {workplace / 'new.txt'}",
        f"learn new  {workplace / 'new.txt'}",
        f"retain old  {workplace / 'old.txt'}",
        "mix  shares of tokens",
    ]
    # 12 * 42 bytes, <s> and </s>; 11 pieces of 48 tokens, 10 with <s> and a token from before.
    assert "tokens    526 in 11 examples, from all rows" in out
    assert "targets   505, 96.0 % of the tokens" in out
    assert "BOS       10 before further pieces, 1.90 % of the tokens" in out
    assert "longest 48" in out
    assert "cut       1 split into pieces of 1 row" in out
    assert re.search(r"\| new +\| train \| 100.0 % \| +0.5\d+ \|", out)  # 3 steps of 2 * 48 of 526
    assert re.search(r"packing +\d+\.\d % of a slot of 48 tokens", out)
    assert "one epoch of train is about 5.5 steps" in out  # 11 slots, which are 98 % full


def test_without_colour_targets_stand_in_brackets(cli: Cli, workplace: Path) -> None:
    _, out, _ = cli("data", "inspect", workplace / "run.yaml", "--samples", 1)
    assert "│ <s>⟦to be or not to be" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("variable", ["NO_COLOR", ""])
def test_with_colour_targets_are_coloured(
    cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    if variable:
        monkeypatch.setenv(variable, "1")
    _, out, _ = cli("data", "inspect", workplace / "run.yaml", "--samples", 1)
    assert ("\x1b[1;32mto be or not" in out) == (not variable)
    assert ("<s>⟦to be or not" in out) == bool(variable)


def test_a_terminal_of_ascii_gets_ascii(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zh.txt").write_text("你好世界。")
    path = run_file(workplace, tmp_path, train=[{"path": str(tmp_path / "zh.txt")}])
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii", write_through=True))
    assert main(["data", "inspect", str(path)]) == 0
    assert rb"| <s>[[\u4f60\u597d" in printed.getvalue()
    assert b" @ 17" in printed.getvalue()  # the bar of the one length


def test_the_number_of_samples_is_as_asked(cli: Cli, workplace: Path) -> None:
    for number in (0, 1, 3):
        _, out, _ = cli("data", "inspect", workplace / "run.yaml", "--samples", number)
        assert out.count("  sample  ") == 3 * number


def test_inspect_writes_all_numbers_as_json(cli: Cli, workplace: Path, tmp_path: Path) -> None:
    output = tmp_path / "data.json"
    assert cli("data", "inspect", workplace / "run.yaml", "--output", output)[0] == 0
    values = json.loads(output.read_text())
    assert [(s["group"], s["name"]) for s in values["sources"]] == [
        ("train", "new"),
        ("learn", "new"),
        ("retain", "old"),
    ]
    source, mix = values["sources"][0], values["mix"]
    assert (source["rows"], source["examples"], source["tokens"]) == (1, 11, 526)
    assert source["lengths"]["longest"] == 48
    assert source["stats"]["split"] == 1
    assert mix["shares"] == [[1.0]]
    assert mix["steps"] == 3
    assert mix["fill"] == pytest.approx(526 / 11 / 48, rel=0.01)
    assert mix["steps_per_epoch"] == pytest.approx(526 / 96 / mix["fill"])


SHAPES: list[tuple[dict[str, Any], float]] = [
    ({}, 8.5),  # 17 slots of two rows, two slots in a step
    ({"mix_by": "rows"}, 8.5),
    ({"packing": False}, 17),  # two rows in a step
    ({"packing": False, "max_tokens_per_batch": 96}, 34 / 4),  # four rows of 24 padded tokens
]


@pytest.mark.parametrize(("data", "steps"), SHAPES)
def test_steps_of_an_epoch_are_those_of_the_batches(
    cli: Cli, workplace: Path, tmp_path: Path, data: dict[str, Any], steps: float
) -> None:
    """34 rows of 20 tokens, slots of 48: as many batches as the loader really gives."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{i:018d}"}) + "\n" for i in range(34)))
    path = run_file(workplace, tmp_path, train=[{"path": str(rows)}], **data)
    output = tmp_path / "o.json"
    assert cli("data", "inspect", path, "--output", output)[0] == 0
    assert json.loads(output.read_text())["mix"]["steps_per_epoch"] == pytest.approx(steps)


def test_bad_rows_are_told_and_do_not_stop(cli: Cli, workplace: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b'{"text": "fine"}\nnot json\n{"text": "\xff"}\n{"prompt": "\x1b[2J"}\n{}\n')
    path = run_file(workplace, tmp_path, train=[{"path": str(rows)}])
    code, out, _ = cli("data", "inspect", path)
    assert code == 0
    assert "left out  4 bad of 5 rows" in out
    assert "`train` stops at such a row" in out
    for line in (2, 3, 4, 5):
        assert f"{rows}:{line}: " in out
    assert "\x1b" not in out
    train = cli("train", path)
    assert train[0] == 2 and "rows.jsonl:" in train[2]
    _, out, _ = cli("data", "inspect", run_file(
        workplace, tmp_path, train=[{"path": str(rows), "on_bad_row": "skip"}]
    ))  # fmt: skip
    assert "left out, counted (on_bad_row: skip)" in out
    assert "`train` stops" not in out


def test_rows_of_strangers_do_not_steer_the_terminal(
    cli: Cli, workplace: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a \x1b]0;title\x07 [bold]b[/bold] \u202e :smile:"}) + "\n")
    _, out, _ = cli("data", "inspect", run_file(workplace, tmp_path, train=[{"path": str(rows)}]))
    assert "⟦a ␛]0;title␇ [bold]b[/bold] \\u202e :smile:</s>⟧" in out
    assert "\x1b" not in out


def test_a_missing_source_does_not_hide_the_others(
    cli: Cli, workplace: Path, tmp_path: Path
) -> None:
    path = run_file(workplace, tmp_path, learn=[{"path": str(tmp_path / "nowhere.jsonl")}])
    code, out, err = cli("data", "inspect", path, "--output", tmp_path / "o.json")
    assert code == 2
    assert err == "controlllm: 1 of 3 sources cannot be used: ['nowhere'].\n"
    assert "does not exist" in out
    assert "retain old" in out
    assert "packing" in out
    assert "does not exist" in json.loads((tmp_path / "o.json").read_text())["sources"][1]["error"]


def test_inspect_finds_prepared_tokens(cli: Cli, workplace: Path, own_cache: Path) -> None:
    cli("data", "prepare", workplace / "run.yaml")
    _, out, _ = cli("data", "inspect", workplace / "run.yaml")
    assert out.count("prepared  yes, in ") == 3
    assert str(own_cache / "new-") in out
    assert "tokens    526 in 11 examples, from all rows" in out


# --- prepare ---


def test_prepare_is_done_once_and_train_reads_it(
    cli: Cli, workplace: Path, tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = run_file(workplace, tmp_path)
    code, out, err = cli("data", "prepare", path)
    assert (code, err) == (0, "")
    heads = [line for line in out.splitlines() if not line.startswith(" ")]
    assert re.fullmatch(r"train new: prepared in \d+\.\d s, \d+\.\d kB", heads[0])
    assert "learn new: was there already" in heads[1]  # The same rows, read in the same way.
    assert "1 rows, 11 examples, 526 tokens, 505 targets, 1 split, 10 repeated BOS" in out
    folders = {line.strip() for line in out.splitlines() if str(own_cache) in line}
    assert {str(folder) for folder in own_cache.iterdir() if folder.is_dir()} == folders
    _, again, _ = cli("data", "prepare", path)
    assert again.count("was there already") == 3
    caplog.set_level("INFO")
    assert cli("train", path)[0] == 0
    assert "526 tokens, prepared" in caplog.text


def test_fixed_slots_are_filled_with_the_tokens(
    cli: Cli, workplace: Path, tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = run_file(workplace, tmp_path)
    fixed = ["--data.packing_strategy", "fixed"]
    code, out, err = cli("data", "prepare", path, *fixed)
    assert (code, err) == (0, "")
    assert re.search(r"^  \d+ slots, \d\d\.\d+% filled$", out, re.MULTILINE)
    folders = {line.strip() for line in out.splitlines() if str(own_cache) in line}
    assert {str(folder) for folder in own_cache.iterdir() if folder.is_dir()} == folders
    assert sum("-slots-" in folder for folder in folders) == 1
    caplog.set_level("INFO")
    assert cli("train", path, *fixed)[0] == 0
    assert "526 tokens, prepared" in caplog.text


WAITING_FILTER = """
import pathlib, time
from controlllm.data import register_filter

@register_filter("test_cli_waits")
def wait(row):
    folder = pathlib.Path(row["folder"])
    (folder / "began").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return True
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_whoever_waits_for_another_process_says_so(
    cli: Cli, workplace: Path, tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "slow.py").write_text(WAITING_FILTER)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a", "folder": str(tmp_path)}) + "\n")
    source = {"path": f"{tmp_path}/rows.jsonl", "filter": "test_cli_waits"}
    path = run_file(
        workplace, tmp_path, train=[source], learn=[], retain=[], plugins=[f"{tmp_path}/slow.py"]
    )

    def wait_for(happened: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not happened() and time.monotonic() < end:
            time.sleep(0.01)

    def let_go() -> None:
        wait_for(lambda: "Waiting up to" in caplog.text)
        (tmp_path / "go").touch()

    other = start(main, ["data", "prepare", str(path), "--trust_config"])
    wait_for((tmp_path / "began").exists)
    (helper := threading.Thread(target=let_go)).start()
    code, out, _ = cli("data", "prepare", path, "--trust_config")
    helper.join()
    other.join(30)
    assert (code, other.exitcode) == (0, 0)
    assert re.match(r"train rows: another process prepared it; waited \d+\.\d s, ", out)
    assert f"Waiting up to 3600 s for process {other.pid} on " in caplog.text


def test_held_out_sets_are_prepared_as_evaluation_reads_them(
    cli: Cli, workplace: Path, tmp_path: Path, own_cache: Path
) -> None:
    rows = tmp_path / "chat.jsonl"
    rows.write_text('{"prompt": "hi", "completion": "you"}\n' * 3)
    source = [{"path": str(rows)}]
    path = run_file(workplace, tmp_path, train=source, learn=source, retain=[], mixed_training=True)
    code, out, _ = cli("data", "prepare", path)
    assert code == 0
    targets = [int(number) for number in re.findall(r"(\d+) targets", out)]
    assert targets[0] > targets[1] > 0
    assert len([folder for folder in own_cache.iterdir() if folder.is_dir()]) == 2


def test_prepare_stops_at_a_bad_row(
    cli: Cli, workplace: Path, tmp_path: Path, own_cache: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "fine"}\nnot json\n')
    path = run_file(workplace, tmp_path, train=[{"path": str(rows)}])
    code, _, err = cli("data", "prepare", path)
    assert code == 2
    assert f"source 'rows': {rows}:2" in err and "on_bad_row: skip" in err
    assert not [folder for folder in own_cache.iterdir() if folder.is_dir()]


HOOKS = """
from controlllm.data import register_postprocess

@register_postprocess("test_cli_asks_for_the_model", uses_model=True)
def ask(rows, context):
    context.model
    yield from rows

@register_postprocess("test_cli_shouts")
def shout(rows, context):
    for row in rows:
        yield {"text": row["text"].upper()}
"""


def test_hooks_run_and_one_that_needs_the_model_says_so(
    cli: Cli, workplace: Path, tmp_path: Path
) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "fine"}\n')
    source = {"path": str(rows), "postprocess": "test_cli_shouts"}
    plugins = [str(tmp_path / "hooks.py")]
    path = run_file(workplace, tmp_path, train=[source], plugins=plugins)
    _, out, _ = cli("data", "inspect", path, "--trust_config")
    assert "⟦FINE</s>⟧" in out
    assert cli("data", "prepare", path, "--trust_config")[0] == 0
    source["postprocess"] = "test_cli_asks_for_the_model"
    path = run_file(workplace, tmp_path, train=[source], plugins=plugins)
    code, _, err = cli("data", "prepare", path, "--trust_config")
    assert code == 2 and "needs the model" in err and "controlllm train" in err
    code, out, err = cli("data", "inspect", path, "--trust_config")
    assert (code, err) == (0, "")
    assert "note      the hook 'test_cli_asks_for_the_model' needs the model" in out
    assert "not known before every train and replay source shows examples" in out


def test_progress_is_shown_on_a_terminal(workplace: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "row {n} {"x" * 50}"}}\n' for n in range(30_000)))
    path = run_file(workplace, tmp_path, train=[{"path": str(rows), "on_bad_row": "skip"}])
    parent, child = os.openpty()

    def prepare() -> None:
        sys.stderr = os.fdopen(child, "w")
        raise SystemExit(main(["data", "prepare", str(path)]))

    process = start(prepare)
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 4096):
            shown += piece
    except OSError:  # The terminal's other side has closed.
        pass
    os.close(parent)
    process.join()
    assert process.exitcode == 0
    assert re.search(rb"preparing rows: [\d,]+ of [\d,]+ rows, \d+ s left", shown)


# --- words ---


def test_data_without_a_command_says_which_there_are(cli: Cli) -> None:
    for words in ((), ("--help",)):
        code, out, _ = cli("data", *words)
        assert code == 0
        assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_explains_the_options_of_a_run_and_its_own(cli: Cli, command: str) -> None:
    code, out, _ = cli("data", command, "--help")
    assert code == 0
    assert f"usage: controlllm data {command} [--config FILE.yaml]" in out
    for option in ("--data.max_length", "--training.max_steps", "--model.tokenizer_name_or_path"):
        assert option in out
    for option in ("--rows", "--samples", "--output"):
        assert (f"{option} " in out) == (command == "inspect")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["inspct"], ["'inspct'", "Did you mean 'inspect'?"]),
        (["inspect", "--rowz", "3"], ["--rowz", "Did you mean --rows?"]),
        (["prepare", "--rows", "3"], ["--rows is not an option"]),
        (["inspect", "--data.max_lenth=3"], ["Did you mean --data.max_length?"]),
        (["inspect", "--rows=-1"], ["rows=-1", "at least 0"]),
        (["inspect", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["inspect"], ["data.train names no source"]),
        (["prepare", "--data.train=[{path: x.txt}]"], ["model.model_name_or_path is not set"]),
    ],
)
def test_wrong_words_are_answered(cli: Cli, words: list[str], parts: list[str]) -> None:
    code, out, err = cli("data", *words)
    assert (code, out) == (2, "")
    assert err.startswith("controlllm: ") and err.count("\n") == 1
    for part in parts:
        assert part in err


def test_overrides_and_presets_work_as_in_train(cli: Cli, workplace: Path) -> None:
    words = ("--preset", "retain", "--data.max_length", 24, "--print_config")
    code, out, _ = cli("data", "inspect", workplace / "run.yaml", *words)
    assert code == 0
    printed = yaml.safe_load(out)
    assert printed["rehearsal"]["num_sequences"] > 0
    assert printed["data"]["max_length"] == 24
    code, out, _ = cli("data", "inspect", workplace / "run.yaml", *words[:-1])
    assert code == 0
    assert re.search(r"\| rehearsal \| base +\| +12.5 % \|", out)


def test_a_missing_tokenizer_is_told(cli: Cli, workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text((workplace / "base/config.json").read_text())
    path = run_file(workplace, tmp_path)
    code, _, err = cli("data", "inspect", path, "--model.model_name_or_path", tmp_path / "base")
    assert code == 2
    assert f"no tokenizer in {tmp_path / 'base'}" in err
    assert "model.tokenizer_name_or_path" in err
    words = ("--model.tokenizer_name_or_path", workplace / "base")
    words += ("--model.model_name_or_path", tmp_path / "nowhere")  # No model is loaded.
    assert cli("data", "inspect", path, *words)[0] == 0


def test_tokenizer_of_a_finished_run_and_of_its_sidecar(
    cli: Cli, workplace: Path, finished_run: Path, sidecar: Path
) -> None:
    expected = cli("data", "inspect", workplace / "run.yaml")[1]
    for model in (finished_run, sidecar):
        words = ("data", "inspect", workplace / "run.yaml", "--model.model_name_or_path", model)
        code, out, err = cli(*words)
        assert (code, err, out) == (0, SAME_FILE, expected)


# --- real rows ---


def test_real_sources_in_one_mix(cli: Cli, shared_data: Path, tmp_path: Path) -> None:
    sft, text = shared_data / "sft", shared_data / "text"
    settings = {
        "model": {"tokenizer_name_or_path": str(shared_data / "tokenizers" / "minimind6400")},
        "data": {
            "train": [
                {"path": str(sft / "gsm8k/train.jsonl.gz"), "name": "gsm8k", "format": "gsm8k"},
                {"path": str(sft / "dolly2k"), "name": "dolly"},
                {"path": str(sft / "chat_dataset_zh_extra/terms_zh.json"), "name": "terms"},
                {"path": str(text / "tinyshakespeare/input.txt"), "text_unit": "paragraph"},
            ],
            "replay": [{"path": str(text / "tinystories_excerpt/*.txt"), "name": "stories"}],
            "replay_share": 0.125,
            "max_length": 1024,
        },
        "training": {"num_train_epochs": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    output = tmp_path / "o.json"
    code, out, err = cli("data", "inspect", tmp_path / "run.yaml", "--rows=900", "--output", output)
    assert (code, err) == (0, "")
    values = json.loads(output.read_text())
    gsm8k, dolly, terms, plays, stories = values["sources"]
    assert (gsm8k["rows"], gsm8k["stats"]["rows"], gsm8k["complete"]) == (7473, 900, False)
    assert gsm8k["tokens"] == pytest.approx(1_690_450, rel=0.03)  # as --rows 0 counts
    assert 0.5 < gsm8k["targets"] / gsm8k["tokens"] < 0.65
    assert terms["stats"]["bad_rows"] == 1 and terms["stops"]
    assert "terms_zh.json, row 151: column 'instruction' is empty" in out
    assert "政治这个词是什么意思" in out
    assert plays["rows"] == 7222
    assert stories["stats"]["split"] == 1
    mix = values["mix"]
    assert mix["shares"] == [[0.21875] * 4 + [0.125]]
    assert mix["fill"] > 0.98
    total = sum(source["tokens"] for source in (gsm8k, dolly, terms, plays))
    assert mix["steps_per_epoch"] == pytest.approx(total / 1024 / 0.875 / 8 / mix["fill"])
    answers = [s["text"] for s in gsm8k["samples"][0]["spans"] if s["kind"] == "target"]
    assert len(answers) == 1 and "####" in answers[0] and answers[0].endswith("<|im_end|>")


# --- plugins of a run folder ---


@pytest.fixture
def stranger(finished_run: Path, workplace: Path, tmp_path: Path) -> Path:
    """A copy of the run whose config names a plugin that leaves a file behind when it runs."""
    import shutil

    folder = tmp_path / "stranger"
    shutil.copytree(finished_run, folder)
    mark, plugin = tmp_path / "executed", tmp_path / "plugin.py"
    plugin.write_text(f"open({str(mark)!r}, 'w').close()\n")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"]["plugins"] = [str(plugin)]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_plugins_of_a_run_folder_are_not_run(
    cli: Cli, stranger: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cli("eval", stranger)[0] == 0
    assert not (tmp_path / "executed").exists()
    (told,) = [record.message for record in caplog.records if "plugins" in record.message]
    assert f"""names --data.plugins='["{tmp_path / "plugin.py"}"]', which is left out""" in told
    assert cli("calibrate", stranger, "--max_forgetting", 9, "--alphas", "[1.0]")[0] == 0
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("by", ["word", "words", "flag", "file"])
def test_plugins_are_run_if_the_user_says_so(
    cli: Cli, stranger: Path, tmp_path: Path, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = json.dumps([str(tmp_path / "plugin.py")])
    (tmp_path / "mine.yaml").write_text(f"data: {{plugins: {plugins}}}\n")
    words = {
        "word": (f"--data.plugins={plugins}",),
        "words": ("--data.plugins", plugins),
        "flag": ("--trust_config",),
        "file": ("--config", tmp_path / "mine.yaml", "--trust_config", "true"),
    }[by]
    code, _, err = cli("eval", stranger, *words)
    assert code == 0, err
    assert (tmp_path / "executed").exists()
    assert "plugins" not in caplog.text


def test_refused_sources_raise_with_debug(cli: Cli, workplace: Path, tmp_path: Path) -> None:
    path = run_file(workplace, tmp_path, learn=[{"path": str(tmp_path / "nowhere.jsonl")}])
    with pytest.raises(DataError, match="nowhere"):
        cli("data", "inspect", path, "--debug")
