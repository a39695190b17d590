"""Suites on real files: every document is asked, and is what lies in the file."""

import gzip
import json
from dataclasses import replace

import pyarrow
import pytest

from controlllm.evaluate.suites import (
    load_suite,
    prepare_tasks,
    what_is_left_out,
    what_is_missing,
)


@pytest.fixture
def lines(shared_data):
    """`lines(path)`: the rows of a file of JSON lines."""

    def read(name):
        path = shared_data / name
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return [json.loads(line) for line in file]

    return read


STEP = 11
"""Every so many documents are compared: lm-eval compiles its templates for each anew."""


def some_of(task, rows):
    """Documents of a task beside the rows of its file, all of which are there."""
    docs = list(task.eval_docs)
    assert len(docs) == len(rows)
    return zip(docs[::STEP], rows[::STEP], strict=True)


def choices(task, doc):
    """Context, choices and right answer of a document, as lm-eval takes them from it."""
    return task.doc_to_text(doc), task.doc_to_choice(doc), task.doc_to_target(doc)


def request_count(task):
    task.set_fewshot_seed(1)
    task.build_all_requests(limit=3, rank=0, world_size=1)
    return len(task.instances)


def lettered(query):
    """The choices in the query of a row of CommonsenseQA."""
    lines = query.removesuffix("\nAnswer:").split("\nChoices:\n")[1].split("\n")
    return [line[3:] for line in lines]


FOUNDRY = {
    "arc_easy": ("arc_easy.jsonl", lambda r: (f"{r['query']}\nAnswer:", r["choices"])),
    "arc_challenge": ("arc_challenge.jsonl", lambda r: (f"{r['query']}\nAnswer:", r["choices"])),
    "piqa": ("piqa.jsonl", lambda r: (f"{r['query']}Answer:", r["choices"])),
    "openbookqa": ("openbook_qa.jsonl", lambda r: (r["query"], r["choices"])),
    "boolq": ("boolq.jsonl.gz", lambda r: (f"{r['query'][9:]}\nAnswer:", ["no", "yes"])),
    "commonsense_qa": (
        "commonsense_qa.jsonl",
        lambda r: (f"{r['query'].split(chr(10))[0]}\nAnswer:", lettered(r["query"])),
    ),
}


def check_foundry(tasks, lines):
    """Prompts, choices and answers are those of the rows."""
    for name in FOUNDRY.keys() & tasks.keys():
        file, asked = FOUNDRY[name]
        rows = lines(f"eval/llm_foundry/{file}")
        for doc, row in some_of(tasks[name], rows):
            assert choices(tasks[name], doc) == (*asked(row), row["gold"]), name
        assert request_count(tasks[name]) == sum(len(row["choices"]) for row in rows[:3])


def test_small(load, lines, shared_data):
    suite = load_suite("small")
    assert [what_is_missing(one, shared_data) for one in suite.benchmarks] == [[]] * 11
    prepared, tasks = load(suite, shared_data)
    assert all(prepared.files[one.name] for one in suite.benchmarks)
    assert {name: len(names) for name, names in prepared.left_out.items()} == {
        "mmlu": 37,
        "mmlu_cloze": 37,
        "bbh": 21,
    }
    check_foundry(tasks, lines)
    check_winogrande(tasks["winogrande"], lines("eval/llm_foundry/winogrande.jsonl"))
    check_mmlu(prepared, tasks, shared_data)
    for name in prepared.leaves["bbh"]:
        path = shared_data / "eval" / "bbh6" / f"{name.removeprefix('bbh_')}.json"
        assert list(tasks[name].eval_docs) == json.loads(path.read_text())["examples"]
        assert request_count(tasks[name]) == 3
    assert list(tasks["gsm8k"].eval_docs) == lines("sft/gsm8k/test.jsonl")
    assert list(tasks["humaneval"].eval_docs) == lines("eval/humaneval/HumanEval.jsonl.gz")
    assert request_count(tasks["gsm8k"]) == request_count(tasks["humaneval"]) == 3


def check_winogrande(task, rows):
    """Each context is gone on with by the same words."""
    for doc, row in some_of(task, rows):
        assert choices(task, doc) == (row["gold"], row["context_options"], row["continuation"])
    assert request_count(task) == 6


def check_mmlu(prepared, tasks, shared_data):
    """The test rows of each subject, after five of its own in letters, after none in cloze form."""
    for name in prepared.leaves["mmlu"]:
        path = shared_data / "eval" / "mmlu20" / f"{name.removeprefix('mmlu_')}.test.arrow"
        rows = pyarrow.ipc.open_stream(path).read_all().to_pylist()
        cloze = tasks[name.replace("mmlu_", "mmlu_cloze_")]
        assert list(tasks[name].eval_docs) == list(cloze.eval_docs) == rows
        assert request_count(tasks[name]) == request_count(cloze) == 12
        assert tasks[name].instances[0].args[0].count("\nD. ") == 6
        assert [instance.args[1] for instance in cloze.instances[:4]] == [
            f" {choice}" for choice in rows[0]["choices"]
        ]


def test_quick(load, lines, shared_data):
    suite = load_suite("quick")
    prepared, tasks = load(suite, shared_data)
    assert all(prepared.files[one.name] for one in suite.benchmarks) and not prepared.left_out
    check_foundry(tasks, lines)
    task, rows = tasks["lambada"], lines("eval/llm_foundry/lambada_openai.jsonl.gz")
    for doc, row in some_of(task, rows):
        asked = task.doc_to_text(doc), task.doc_to_target(doc)
        assert asked == (row["context"], f" {row['continuation']}")
    task, rows = tasks["gsm8k_gold"], lines("sft/gsm8k/test.jsonl")
    for doc, row in some_of(task, rows):
        asked = task.doc_to_text(doc), task.doc_to_target(doc)
        assert asked == (f"Question: {row['question']}\nAnswer:", f" {row['answer']}")
    task, rows = tasks["copa"], lines("eval/llm_foundry/copa.jsonl")
    for doc, row in some_of(task, rows):
        text, listed, right = choices(task, doc)
        assert text == row["query"].replace(",", "")
        assert listed == [f" {choice}" for choice in row["choices"]]
        assert listed.index(right) == row["gold"]


def test_suites_for_larger_models_where_their_data_are(load, pick, shared_data):
    """The same files serve other forms of the same question."""
    suite = pick("original", "arc_challenge", "arc_challenge_chat", "mmlu_cot")
    prepared, tasks = load(suite, shared_data)
    assert len(tasks["arc_challenge_chat"].eval_docs) == 1172
    assert request_count(tasks["arc_challenge_chat"]) == 3
    assert len(prepared.leaves["mmlu_cot"]) == 20
    assert all(request_count(tasks[name]) == 3 for name in prepared.leaves["mmlu_cot"])


@pytest.mark.parametrize("name", ["small", "original"])
def test_what_will_be_left_out_is_what_is_left_out(name, shared_data, tmp_path):
    suite = load_suite(name)
    kept = tuple(one for one in suite.benchmarks if not what_is_missing(one, shared_data))
    with pytest.warns(UserWarning, match="are left out"):
        prepared = prepare_tasks(replace(suite, benchmarks=kept), shared_data, tmp_path / "tasks")
    told = {one.name: what_is_left_out(one, shared_data) for one in kept}
    counts = {key: int(text.split()[0]) for key, text in told.items() if text}
    assert counts == {key: len(tasks) for key, tasks in prepared.left_out.items()} != {}
