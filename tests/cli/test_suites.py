"""`controlllm suites`: what there is, what it asks for, and what this machine lacks."""

import subprocess
import sys

import pytest

from controlllm.evaluate.suites import suite_names

MINE = """
about: My own.
benchmarks:
  - {name: mine, tasks: [my_task, other], kind: generate, items: 164, dataset: org/mine,
     extras: [no-such-package-here], strict: "extract:last_number", licence: "\\e[31mMIT"}
"""

TASK = """
task: {}
dataset_path: org/mine
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


def cells(out, name):
    (line,) = (line for line in out.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_all_are_listed(cli):
    code, out, _ = cli("suites")
    assert code == 0
    for name in suite_names():
        assert f"\n{name}: " in f"\n{out}"
    assert "maths: gsm8k, math, math_hard" in out


def test_one_is_shown(cli, tmp_path):
    code, out, _ = cli("suites", "maths")
    assert code == 0
    assert cells(out, "gsm8k") == [
        *("gsm8k", "gsm8k_cot", "generate, auto", "8", "exact_match,strict-match"),
        *("exact_match,flexible-extract", "1,319", "0", "3.4", "MIT"),
    ]
    assert "missing for gsm8k: openai/gsm8k is not on this machine" in out
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/test.jsonl").write_text("{}")
    _, out, _ = cli("suites", "maths", "--data_dir", tmp_path)
    assert "missing for gsm8k" not in out and "missing for math:" in out


def test_real_data_is_found(cli, shared_data):
    _, out, _ = cli("suites", "--data_dir", shared_data, "--name", "small")
    told = f"37 of its 57 subjects are left out, as {shared_data} has no data for them"
    assert f"in part for mmlu: {told}" in out and f"in part for mmlu_cloze: {told}" in out
    assert "in part for bbh: 21 of its 27 subjects" in out and out.count("in part for") == 3
    assert "missing" not in out.casefold()
    _, out, _ = cli("suites", "--data_dir", shared_data, "--name", "quick")
    assert out.rstrip().endswith("Nothing is missing on this machine.")


def test_ones_own(cli, tmp_path):
    (tmp_path / "own.yaml").write_text(MINE)
    _, out, _ = cli("suites", "--suite_dir", tmp_path)
    assert "own: mine" in out and "maths: " in out
    (tmp_path / "tasks").mkdir()
    for name in ("my_task", "other"):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(TASK.format(name))
    include = ["--include_path", tmp_path / "tasks"]
    code, out, err = cli("suites", "own", "--suite_dir", tmp_path, *include)
    assert code == 0, err
    assert cells(out, "mine")[1:5] == ["my_task, 1 more", "generate, auto", "the task's",
                                       "extract:last_number"]  # fmt: skip
    assert cells(out, "mine")[8] == "9.8"
    assert "missing for mine: no-such-package-here is not installed" in out
    assert "\x1b" not in out
    assert cli("suites", tmp_path / "own.yaml", *include)[1] == out


@pytest.mark.slow  # lm-eval's index of all its tasks
def test_a_task_that_there_is_not_is_refused(cli, tmp_path):
    pytest.importorskip("lm_eval", reason="needs lm-eval (the extra `eval`)")
    (tmp_path / "own.yaml").write_text(MINE.replace("my_task, other", "gsm8k_cott"))
    code, out, err = cli("suites", tmp_path / "own.yaml")
    assert (code, out) == (2, "")
    assert "task='gsm8k_cott' is not known" in err and "Did you mean 'gsm8k_cot" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["math"], "suite='math' is not known; allowed: .* Did you mean 'maths'?"),
        (["maths", "--data_dir", "absent"], "data_dir='absent' is not a folder."),
        (["--suite_dir", "absent"], "suite_dir='absent' is not a folder."),
        (["maths", "code"], "'code' is one word too many"),
    ],
)
def test_what_is_wrong_is_told(cli, words, told):
    code, out, err = cli("suites", *words)
    assert (code, out) == (2, "")
    head, _, tail = told.partition(".*")
    assert head in err and tail in err


def test_a_bad_file_does_not_hide_the_others(cli, tmp_path):
    (tmp_path / "own.yaml").write_text(MINE)
    (tmp_path / "bad.yaml").write_text(MINE.replace(" items: 164,", ""))
    (tmp_path / "worse.yaml").write_text("[")
    code, out, err = cli("suites", "--suite_dir", tmp_path)
    assert code == 2 and "own: mine" in out and "maths: " in out and "bad: " not in out
    assert "benchmark 'mine': 'items' is missing: how many questions there are." in err
    assert "worse.yaml" in err and err.count("controlllm: ") == 2


SHOW = """
import sys
sys.argv = ["controlllm", "suites", "original"]
from controlllm.cli import main
code = main()
heavy = {"torch", "transformers", "huggingface_hub", "lm_eval", "scipy", "pyarrow"} & {*sys.modules}
sys.exit(code or f"imported: {sorted(heavy)}" if code or heavy else 0)
"""


def test_it_waits_for_no_heavy_package():
    result = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "| mmlu_pro " in result.stdout
