"""`ship` and `report`, by the real command: what they write, exit codes, and no model loaded."""

import json
import shutil
import subprocess
import sys

import pytest
from tests.evaluate.judged import evaluation, rights

COMMAND = """
import sys
sys.argv = ["controlllm", *sys.argv[1:]]
from controlllm.cli import main
code = main()
heavy = {"torch", "transformers", "huggingface_hub", "lm_eval"} & set(sys.modules)
sys.exit(f"imported: {sorted(heavy)}" if heavy else code)
"""
RULE = "{benchmark: gsm8k, reading: strict, not_below: -0.02}"


@pytest.fixture
def run(tmp_path):
    """A run folder in which 80 of 300 items were lost, and one more in the second suite."""
    evaluation(rights(150, 70)).save(tmp_path / "run" / "evaluations" / "s")
    evaluation(rights(150, 150), suite="t").save(tmp_path / "run" / "evaluations" / "t")
    return tmp_path / "run"


def gate(folder, *rules):
    """A file of rules."""
    (folder / "gate.yaml").write_text("rules:\n" + "".join(f"  - {rule}\n" for rule in rules))
    return folder / "gate.yaml"


def in_suite(rule, suite):
    """The rule for one suite."""
    return rule.replace("}", f", suite: {suite}}}")


@pytest.mark.parametrize(
    ("rules", "code", "told"),
    [
        ([in_suite(RULE, "t")], 0, "PASS: the one rule holds."),
        ([in_suite(RULE, "s"), in_suite(RULE, "t")], 2, "FAIL: 1 of 2 rules broken: gsm8k strict"),
        ([in_suite(RULE.replace("0.02", "0.27"), "s")], 4, "INCONCLUSIVE: no rule is surely"),
        ([RULE], 3, "rule 1: gsm8k is in the suites s, t"),
        ([RULE.replace("gsm8k", "gsm8")], 3, "Did you mean 'gsm8k'?"),
        (["{benchmark: gsm8k}"], 3, "rule 1: give either reading or share"),
    ],
)
def test_exit_codes(cli, tmp_path, run, rules, code, told):
    found, out, err = cli("ship", run, "--gate", gate(tmp_path, *rules))
    assert (found, told in out + err) == (code, True), out + err


def test_errors_have_the_exit_code_1_and_wrong_words_3(cli, tmp_path, run):
    rules = gate(tmp_path, in_suite(RULE, "t"))
    assert cli("ship", tmp_path, "--gate", rules)[0] == 1
    (run / "evaluations" / "t" / "items-1.jsonl").write_text("{")
    code, _, err = cli("ship", run, "--gate", rules)
    assert code == 1 and "items-1.jsonl:1 is no JSON" in err
    code, _, err = cli("ship", run)
    assert code == 3 and "--gate FILE.yaml" in err
    assert cli("ship", run, "--gate", tmp_path / "none.yaml")[0] == 3
    assert cli("ship", run, "--gate", rules, "--modle", "x")[0] == 3
    assert cli("compare", tmp_path)[0] == 2


def test_the_verdict_is_written_as_json(cli, tmp_path, run):
    rules = gate(tmp_path, in_suite(RULE, "s"))
    code, out, _ = cli("ship", run, "--gate", rules, "--json", tmp_path / "verdict.json")
    assert code == 2 and "| gsm8k     | strict | -0.2667 |" in out
    assert "suite s: tuned is a/run" in out and "suite t" not in out
    told = json.loads((tmp_path / "verdict.json").read_text())
    assert (told["verdict"], told["model"], told["level"]) == ("FAIL", "tuned", 0.95)
    (rule,) = told["rules"]
    assert rule["value"]["estimate"] == pytest.approx(-80 / 300)
    assert rule["rule"] == {
        "benchmark": "gsm8k",
        "reading": "strict",
        "suite": "s",
        "not_below": -0.02,
    }


def test_the_command_itself_ends_with_the_code_and_loads_no_model(tmp_path, run):
    rules = gate(tmp_path, in_suite(RULE, "s"))
    words = [sys.executable, "-c", COMMAND, "ship", str(run), "--gate", str(rules)]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 2, found.stderr
    assert "FAIL: 1 of 1 rules broken" in found.stdout


def test_report_writes_one_page_and_loads_no_model(cli, tmp_path, run):
    rules, page = gate(tmp_path, in_suite(RULE, "s")), tmp_path / "pages" / "page.html"
    words = [sys.executable, "-c", COMMAND, "report", str(run), "--gate", str(rules)]
    found = subprocess.run([*words, "--output", str(page)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    text = page.read_text()
    assert str(page) in found.stdout and "1 of 1 rules broken" in text
    assert "http:" not in text and "https:" not in text and "<script" not in text
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_report_of_several_runs(cli, tmp_path, run):
    shutil.copytree(run, tmp_path / "other")
    page = tmp_path / "page.html"
    code, _, _ = cli("report", run, tmp_path / "other", "--learned", '["gsm8k"]', "--output", page)
    assert code == 0 and "Report on run and other" in page.read_text()
    code, _, err = cli("report", run, "--runs", f"['{run}']")
    assert code == 2 and "given twice" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--learned", "[gsm8]"], "Did you mean 'gsm8k'?"),
        (["--model", "tunde"], "Did you mean 'tuned'?"),
        (["--gate", "none.yaml"], "cannot read the gate none.yaml"),
        (["--examples", "-1"], "examples=-1 is out of range"),
        (["--output", "."], "is a folder; name a file"),
        (["nowhere"], "nowhere holds no evaluation"),
    ],
)
def test_report_refuses_what_it_cannot_show(cli, tmp_path, run, words, told, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("report", run, *words)
    assert code == 2 and told in err
    assert not (tmp_path / "report.html").exists()


def test_compare_shows_benchmarks_where_runs_were_evaluated(cli, finished_run, tmp_path):
    runs = [shutil.copytree(finished_run, tmp_path / name) for name in ("a", "b", "c")]
    evaluation(rights(150, 70)).save(runs[0] / "evaluations" / "s")
    evaluation(rights(150, 70)).save(runs[2] / "evaluations" / "s")
    (runs[2] / "evaluations" / "s" / "items-1.jsonl").write_text("{")
    code, out, _ = cli("compare", *runs, "--output", tmp_path / "o.json")
    assert code == 0 and "benchmarks left out: " in out and "items-1.jsonl:1 is no JSON" in out
    assert cli("compare", runs[1], "--output", tmp_path / "o.json")[0] == 0  # Ours are replaced.
    assert cli("compare", *runs, "--output", tmp_path / "o.json")[0] == 0
    row = "| a   | tuned | s     | gsm8k     | knowledge lost | strict  | 0.500 | 0.233 |"
    assert "strict fell; nothing else was read that could say why |" in out
    assert row in out and "| b   | tuned" not in out
    a, b, c = json.loads((tmp_path / "o.json").read_text())
    assert a["benchmarks"][0]["difference"] == pytest.approx(-80 / 300)
    assert "benchmarks" not in b and "benchmarks" not in c and b["learn_loss"] == a["learn_loss"]
    assert cli("compare", tmp_path)[1].splitlines()[-1].startswith(row)


def test_files_of_others_are_not_written_over(cli, tmp_path, run):
    rules = gate(tmp_path, in_suite(RULE, "t"))
    text = rules.read_text()
    code, _, err = cli("ship", run, "--gate", rules, "--json", tmp_path / "x" / ".." / rules.name)
    assert code == 3 and "is the gate itself" in err
    other = tmp_path / "other.json"
    for found in ('{"verdict": 1}', "{", ""):
        other.write_text(found)
        code, _, err = cli("ship", run, "--gate", rules, "--json", other)
        assert code == 3 and "is no verdict of ours" in err and other.read_text() == found
        code, _, err = cli("report", run, "--gate", rules, "--output", other)
        assert code == 2 and "is no report of ours" in err and other.read_text() == found
        code, _, err = cli("compare", run, "--output", other)
        assert code == 2 and "is no comparison of ours" in err and other.read_text() == found
    code, _, err = cli("report", run, "--gate", rules, "--output", rules)
    assert code == 2 and rules.read_text() == text
    for _ in range(2):  # The second time over our own.
        mine, page = tmp_path / "mine.json", tmp_path / "page.html"
        assert cli("ship", run, "--gate", rules, "--json", mine)[0] == 0
        assert cli("report", run, "--output", page)[0] == 0


def test_a_run_that_was_asked_in_training_only(cli, tmp_path, finished_run):
    run = shutil.copytree(finished_run, tmp_path / "run")
    evaluation(rights(150, 150)).save(run / "benchmarks" / "step-3" / "s")
    told = f"evaluated in training only; its newest step is read: {run / 'benchmarks' / 'step-3'}"
    for words in (["ship", run, "--gate", gate(tmp_path, RULE)], ["compare", run]):
        code, out, _ = cli(*words)
        assert code == 0 and told in out and "gsm8k" in out
    code, out, _ = cli("report", run, "--output", tmp_path / "page.html")
    assert code == 0 and told in out
