"""`controlllm eval --suite` and `--tasks`: what is asked, kept, shown, and refused."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.evaluate.samples import write_repetition_task, write_task

from controlllm.common.errors import ConfigError
from controlllm.evaluate import Evaluation, check_walls, vllm_targets
from controlllm.evaluate.texts import EXTRACTORS

pytest.importorskip("lm_eval", reason="needs lm-eval (the extra `eval`)")

SUITE = """
about: Two readings of few questions.
benchmarks:
  - {name: arc, tasks: [arc_easy], kind: choice, shots: 0, prompt: plain, strict: "acc_norm,none",
     chance: 0.25, items: 2376, dataset: allenai/ai2_arc, config: ARC-Easy}
  - {name: sums, tasks: [gsm8k_cot], kind: generate, shots: 0, prompt: plain,
     strict: "exact_match,strict-match", lenient: "extract:last_number", items: 1319,
     max_new_tokens: 12, dataset: openai/gsm8k, config: main}
"""


@pytest.fixture
def suite(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def words(suite, shared_data, stories260k, tmp_path):
    """`words(option=value)`: those of a small evaluation, some of them other ones."""
    usual = {
        "suite": suite,
        "data_dir": shared_data,
        "sample": 12,
        "store": tmp_path / "store",
        "save_to": tmp_path / "out",
        "batch_size": 4,
    }

    def make(**more):
        options = {name: value for name, value in {**usual, **more}.items() if value is not None}
        pairs = ((f"--{name}", str(value)) for name, value in options.items())
        return ["eval", str(stories260k), *(word for pair in pairs for word in pair)]

    return make


def test_a_suite_of_one_s_own(cli, words, tmp_path):
    code, out, _ = cli(*words(output=tmp_path / "numbers.json"))
    assert code == 0
    assert "| arc " in out and "bits per byte" in out and "metric of lm-eval" in out
    found = Evaluation.load(tmp_path / "out" / "mine")
    assert {item.benchmark for item in found.items["model"]} == {"arc", "sums"}
    assert all(item.cut_off is not None for item in found.of("model", "sums"))
    assert json.loads((tmp_path / "numbers.json").read_text())["suites"]["mine"]["scores"]


OWN_TASK = """
task: mine
dataset_path: allenai/ai2_arc
dataset_name: ARC-Easy
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}} It is"
doc_to_choice: "{{choices.text}}"
doc_to_target: "{{choices.label.index(answerKey)}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_a_suite_of_tasks_of_one_s_own(cli, words, suite, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(OWN_TASK)
    suite.write_text(SUITE.replace("[arc_easy]", "[mine]").replace("acc_norm,none", "acc,none"))
    code, _, err = cli(*words(benchmarks="arc", include_path=tmp_path / "tasks"))
    assert code == 0, err
    found = Evaluation.load(tmp_path / "out" / "mine").of("model", "arc")
    assert len(found) == 12
    code, _, err = cli(*words(benchmarks="arc"))
    assert code == 2 and "task='mine' is not known" in err


def test_a_run_is_compared_with_its_base(cli, finished_run, suite, shared_data, tmp_path):
    measured = ["--data.learn", "[]", "--data.retain", "[]", "--limit", 3, "--benchmarks", "arc"]
    asked = ["--suite", suite, "--data_dir", shared_data, "--collapsed", "true"]
    kept = ["--store", tmp_path / "store", "--save_to", tmp_path / "out", "--alpha", "0,0.5,1"]
    code, out, err = cli("eval", finished_run, *measured, *asked, *kept)
    assert code == 0, err
    found = Evaluation.load(tmp_path / "out" / "mine")
    labels = [model.label for model in found.models]
    assert labels == ["base", "tuned", "alpha 0.5", "alpha 1", "collapsed"]
    assert "difference" in out and "outcome" in out
    page, gate = tmp_path / "page.html", tmp_path / "gate.yaml"
    gate.write_text("rules: [{benchmark: arc, reading: choice, not_below: -0.02}]")
    code, _, err = cli("report", tmp_path / "out", "--gate", gate, "--output", page)
    assert code == 0, err
    assert "arc along the dial" in page.read_text() and "collapsed" in page.read_text()
    code, out, _ = cli("ship", tmp_path / "out", "--gate", gate)
    assert code in (0, 2, 4) and "| mine  | arc       | choice |" in out


def test_another_evaluation_does_not_replace_one(cli, words, tmp_path, caplog):
    assert cli(*words())[0] == 0
    first = Evaluation.load(tmp_path / "out" / "mine")
    assert cli(*words())[0] == 0 and "asked something else: it is in" not in caplog.text
    assert cli(*words(benchmarks="arc", sample=5))[0] == 0
    assert "asked something else: it is in" in caplog.text
    earlier = tmp_path / "out" / "earlier"
    assert Evaluation.load(earlier / "mine-1").items == first.items
    (tmp_path / "out" / "mine" / "items-0.jsonl").write_text("damaged")
    assert cli(*words(benchmarks="arc", sample=5))[0] == 0
    assert (earlier / "mine-2" / "items-0.jsonl").read_text() == "damaged"
    assert len(Evaluation.load(tmp_path / "out" / "mine").items["model"]) == 5


def test_an_extractor_and_task_files_of_one_s_own(
    cli, words, suite, tmp_path, shared_data, monkeypatch
):
    """By a plug-in and by relative paths, from the folder that they lie in."""
    monkeypatch.setattr(EXTRACTORS, "_things", dict(EXTRACTORS._things))
    monkeypatch.chdir(tmp_path)
    Path("tasks").mkdir()
    write_task(Path("tasks"), "mine_arc", shared_data / "eval/llm_foundry/copa.jsonl")
    Path("say.py").write_text(
        "from controlllm.evaluate.texts import register_extractor\n"
        "register_extractor('first_word')(lambda text, marker: (text.split() or [None])[0])\n"
    )
    own = SUITE.replace("extract:last_number", "extract:first_word")
    own += "  - {name: mine, tasks: [mine_arc], kind: choice, items: 100}\n"
    suite.write_text(own)
    asked = words(include_path="tasks")
    code, _, err = cli(*asked)
    assert code == 2 and "extractor='first_word'" in err
    code, _, err = cli(*asked, "--data.plugins", "[say.py]")
    assert code == 0, err
    found = Evaluation.load(tmp_path / "out" / "mine")
    assert [one.choice for one in found.benchmarks] == ["acc_norm,none", None, "acc_norm,none"]


def test_answers_are_read_again_without_the_model(cli, words, suite, tmp_path, monkeypatch):
    """With another extractor, and with the model's loading made impossible."""
    assert cli(*words())[0] == 0
    before = Evaluation.load(tmp_path / "out" / "mine")
    monkeypatch.setattr("controlllm.cli.evaluate_models.load_model", None)
    assert cli(*words(stored="true"))[0] == 0
    again = Evaluation.load(tmp_path / "out" / "mine")
    assert again.items == before.items and again.scores == before.scores
    suite.write_text(SUITE.replace("extract:last_number", "extract:last_line"))
    assert cli(*words(stored="true"))[0] == 0
    other = Evaluation.load(tmp_path / "out" / "mine")
    assert other.benchmarks[1].lenient == "extract:last_line"
    assert [i.answer for i in other.items["model"]] == [i.answer for i in before.items["model"]]
    code, _, err = cli(*words(stored="true", sample=13))
    assert code == 2 and "the store lacks an answer" in err
    code, _, err = cli(*words(stored="true", save_to=tmp_path / "elsewhere"))
    assert code == 2 and "controlllm eval --suite" in err


def test_a_base_with_another_tokenizer_is_refused(cli, words, stories260k, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(stories260k, other)
    rules = json.loads((other / "tokenizer.json").read_text())
    rules["model"]["merges"] = rules["model"]["merges"][:-5]
    (other / "tokenizer.json").write_text(json.dumps(rules))
    code, _, err = cli(*words(reference=other))
    assert code == 2 and "has another tokenizer than the model" in err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"suite": "maht"}, "Did you mean 'maths'"),
        ({"benchmarks": "acr"}, "are in no suite; there are: ['arc', 'sums']. Did you mean 'arc'?"),
        ({"limit": 3}, "limit and sample are both given"),
        ({"apply_chat_template": "true"}, "only --tasks reads it"),
        ({"alpha": 0.5}, "alpha needs an expanded model"),
        ({"alpha": "0,2"}, "alpha"),
        ({"alpha": "half"}, "is no number"),
        ({"data_dir": "/nowhere"}, "/nowhere"),
        ({"nproc": 0}, "nproc"),
        ({"max_new_tokens": 100_000}, "--max_new_tokens"),
    ],
)
def test_what_is_refused(cli, words, more, told):
    code, _, err = cli(*words(**more))
    assert code == 2 and told in err and "Traceback" not in err


@pytest.mark.parametrize("place", ["out", "out/mine", "store"])
def test_a_file_where_a_folder_is_written_is_refused_at_the_start(cli, words, tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file")
    (tmp_path / "t.txt").write_text("Once upon a time there was a cat.\n" * 20)
    code, out, err = cli(*words(files=tmp_path / "t.txt"))
    assert (code, out) == (2, "")
    assert err.endswith(f"cannot write {path}: it is a file; name a folder.\n")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("acc_norm,none", "acc_nrm,none", "arc: metric='acc_nrm' is not known"),
        ("strict-match", "strict", "sums: filter of exact_match='strict' is not known"),
    ],
)
def test_a_reading_that_a_task_has_not_is_refused_before_the_model_is_loaded(
    cli, words, suite, monkeypatch, old, new, told
):
    monkeypatch.delattr("controlllm.cli.evaluate_models.load_model")
    suite.write_text(SUITE.replace(old, new))
    code, _, err = cli(*words())
    assert code == 2 and told in err


def test_a_run_that_carries_its_base_takes_no_reference(cli, finished_run, sidecar, workplace):
    for model in (finished_run, sidecar):
        code, out, err = cli("eval", model, "--reference", workplace / "base",
                             "--data.retain", "[]", "--files", workplace / "old.txt")  # fmt: skip
        assert (code, out) == (2, "") and "carries its base" in err
        assert err.endswith("leave --reference out.\n")
    code, out, err = cli("eval", workplace / "base", "--reference", finished_run,
                         "--files", workplace / "old.txt")  # fmt: skip
    assert (code, out) == (2, "") and "carries a base of its own" in err


def test_a_base_is_named_by_its_own_path(cli, words, stories260k, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(stories260k, base)
    assert cli(*words(reference=base, benchmarks="arc"))[0] == 0
    models = Evaluation.load(tmp_path / "out" / "mine").models
    assert [(model.label, model.name) for model in models] == [
        *(("base", str(base)), ("tuned", str(stories260k))),
    ]


def test_documents_of_a_single_task_that_cannot_be_had(cli, words, suite, tmp_path):
    (tmp_path / "tasks").mkdir()
    own = OWN_TASK.replace("dataset_path: allenai/ai2_arc", "dataset_path: json")
    own = own.replace("dataset_name: ARC-Easy", "dataset_kwargs: {data_files: /nowhere/a.jsonl}")
    (tmp_path / "tasks" / "mine.yaml").write_text(own)
    code, _, err = cli(*words(suite=None, data_dir=None, tasks="mine",
                              include_path=tmp_path / "tasks"))  # fmt: skip
    assert code == 2 and "cannot be loaded" in err
    assert "take their documents from the Hub" in err and "Put them below" not in err


def test_inputs_that_are_cut_are_told_once(cli, words, stories260k, tmp_path, caplog):
    """Of two models that read the same; and tokenizers say nothing beside it."""
    short = tmp_path / "short"
    shutil.copytree(stories260k, short)
    for name, key in (("config.json", "max_position_embeddings"),
                      ("tokenizer_config.json", "model_max_length")):  # fmt: skip
        values = json.loads((short / name).read_text())
        (short / name).write_text(json.dumps(values | {key: 40}))
    other = tmp_path / "other"
    shutil.copytree(short, other)
    weights = load_file(other / "model.safetensors")
    name = sorted(weights)[0]
    save_file(weights | {name: weights[name] * 1.01}, other / "model.safetensors", {"format": "pt"})
    asked = words(benchmarks="arc", reference=other)
    code, _, err = cli(*asked[:1], short, *asked[2:])
    assert code == 0, err
    assert caplog.text.count("lost their beginning") == 1
    assert "Token indices" not in err + caplog.text


def test_options_of_benchmarks_without_any(cli, stories260k, tmp_path):
    (tmp_path / "t.txt").write_text("Once upon a time there was a cat.\n" * 20)
    for option in (["--sample", "3"], ["--store", tmp_path], ["--collapsed", "true"]):
        code, _, err = cli("eval", stories260k, "--files", tmp_path / "t.txt", *option)
        assert code == 2 and "only --suite and --tasks read" in err


def run(words, tmp_path, **more) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "controlllm.cli", *words]
    log = (tmp_path / "log.txt").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **more})


def test_killed_and_resumed_equals_straight(cli, words, tmp_path):
    """A process that is killed while it asks; the same command goes on with what is kept."""
    straight = words(sample=40, store=tmp_path / "a", save_to=tmp_path / "one")
    assert cli(*straight)[0] == 0
    killed = words(sample=40, store=tmp_path / "b", save_to=tmp_path / "two")
    process = run(killed, tmp_path)
    deadline = time.monotonic() + 120
    while not (kept := [*(tmp_path / "b").glob("*/answers.jsonl")]) or not kept[0].stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    before = len(kept[0].read_bytes().splitlines())
    assert cli(*killed)[0] == 0
    (path,) = (tmp_path / "a").glob("*/answers.jsonl")
    whole = path.read_bytes().splitlines()
    assert 0 < before < len(whole)
    one, two = (Evaluation.load(tmp_path / name / "mine") for name in ("one", "two"))
    assert one.items == two.items and one.scores == two.scores


def test_two_processes_write_what_one_writes(cli, words, tmp_path):
    assert cli(*words(store=tmp_path / "a", save_to=tmp_path / "one"))[0] == 0
    shared = words(nproc=2, store=tmp_path / "b", save_to=tmp_path / "two")
    process = run(shared, tmp_path, OMP_NUM_THREADS="1")
    assert process.wait(240) == 0, (tmp_path / "log.txt").read_text()
    one, two = (Evaluation.load(tmp_path / name / "mine") for name in ("one", "two"))
    assert one.items == two.items and one.scores == two.scores
    assert (tmp_path / "log.txt").read_text().count("items: ") == 1  # One of them speaks.


CODE = """
about: Programs.
benchmarks:
  - {name: functions, tasks: [code_humaneval], kind: code, shots: 0, prompt: plain, items: 164,
     max_new_tokens: 8, dataset: openai/openai_humaneval}
"""


@pytest.fixture
def programs(tmp_path) -> Path:
    path = tmp_path / "programs.yaml"
    path.write_text(CODE)
    return path


def test_programs_are_not_run_unless_that_is_asked(cli, words, programs, tmp_path, caplog):
    assert cli(*words(suite=programs, sample=3))[0] == 0
    assert "functions: programs are not run" in caplog.text
    found = Evaluation.load(tmp_path / "out" / "programs").items["model"]
    assert all(item.strict is None and item.bits_per_byte is not None for item in found)


def test_programs_are_graded_behind_walls(cli, words, programs, tmp_path, shared_data):
    """Reference solutions, put in the place of what the model wrote, pass; what it wrote not."""
    if not check_walls().stand:
        pytest.skip(f"walls are missing here: {check_walls().describe()}")
    asked = words(suite=programs, sample=4, code_sandbox="strict")
    assert cli(*asked)[0] == 0
    found = Evaluation.load(tmp_path / "out" / "programs")
    assert [item.strict for item in found.items["model"]] == [0.0] * 4
    (path,) = (tmp_path / "store").glob("*/answers.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    with gzip.open(shared_data / "eval/humaneval/HumanEval.jsonl.gz", "rt") as file:
        problems = [json.loads(line) for line in file]
    right = {}
    for item in found.items["model"]:
        (problem,) = (one for one in problems if one["prompt"].endswith(item.question[-200:]))
        right[item.answer] = problem["canonical_solution"]
    for row in rows:
        if "text" in row["answer"]:
            row["answer"] = {"text": right[row["answer"]["text"]], "cut_off": False}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli(*asked)[0] == 0
    found = Evaluation.load(tmp_path / "out" / "programs")
    assert [item.strict for item in found.items["model"]] == [1.0] * 4
    scores = {row["metric"]: row["value"] for row in found.scores}
    assert scores["pass@1,strict"] == scores["pass@1,lenient"] == 1.0


def test_several_programs_for_each_question(cli, words, programs, tmp_path):
    if not check_walls().stand:
        pytest.skip(f"walls are missing here: {check_walls().describe()}")
    asked = words(suite=programs, sample=2, code_samples=3, pass_at="1,3", code_sandbox="strict")
    assert cli(*asked)[0] == 0
    found = Evaluation.load(tmp_path / "out" / "programs")
    assert found.benchmarks[0].samples == 3
    assert {row["metric"] for row in found.scores} >= {"pass@1,strict", "pass@3,strict"}
    (path,) = (tmp_path / "store").glob("*/answers.jsonl")
    rows = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    assert len({row["text"] for row in rows if "text" in row}) > 2  # They are drawn.


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"pass_at": 2, "code_sandbox": "strict"}, "at most code_samples=1"),
        ({"pass_at": "1,x"}, "no whole number"),
        ({"code_temperature": 0.2}, "one program is not drawn"),
        ({"code_sandbox": "lax"}, "strict"),
        ({"engine": "vllm"}, "engine=vllm"),
        ({"engine": "vllm", "collapsed": "true"}, "has no dial"),
    ],
)
def test_what_is_refused_of_programs_and_engines(cli, words, programs, more, told):
    code, _, err = cli(*words(suite=programs, **more))
    assert code == 2 and told in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"collapsed": "true"}, "collapsed needs an expanded model"),
        ({"alpha": "0,1"}, "alpha needs an expanded model"),
        ({"tasks": "repeat", "apply_chat_template": "true"}, "has no chat template"),
    ],
)
def test_it_is_told_before_losses_are_measured(cli, words, tmp_path, more, told):
    text = tmp_path / "t.txt"
    text.write_text("Once upon a time there was a cat.\n" * 20)
    if "tasks" in more:
        (tmp_path / "tasks").mkdir()
        write_repetition_task(tmp_path / "tasks")
        suite = {"suite": None, "benchmarks": None, "data_dir": None}
        more = {**more, **suite, "include_path": tmp_path / "tasks"}
    code, out, err = cli(*words(**{"files": text, "benchmarks": "arc", **more}))
    assert code == 2 and told in err and "ppl" not in out


def test_both_folders_of_vllm_are_looked_at_before_one_is_asked(stories260k, tmp_path):
    with pytest.raises(ConfigError, match=f"which {tmp_path} is not"):
        vllm_targets(str(stories260k), str(tmp_path))
