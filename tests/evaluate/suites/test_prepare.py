"""The tasks that are written for a suite: lm-eval loads them, and they ask what the files hold."""

import csv
import io
import random

import pytest
import yaml

from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.evaluate import find_tasks, load_benchmark
from controlllm.evaluate.suites import Suite, load_suite, prepare_tasks
from controlllm.evaluate.suites.suite import Benchmark

QUESTION = {"question": "2 + 2?", "choices": ["3", "4", "5", "6"], "answer": 1, "subject": "x"}
LETTERED = {"id": 0, "question": "1+1=?", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B"}
CAPITALS = {"Question": "1+1=?", "A": "1", "B": "2", "C": "3", "D": "4", "Answer": "B"}

CATEGORIES = [
    *("biology", "business", "chemistry", "computer science", "economics", "engineering"),
    *("health", "history", "law", "math", "other", "philosophy", "physics", "psychology"),
]


def requests_of(task):
    task.set_fewshot_seed(1)
    task.build_all_requests(limit=1, rank=0, world_size=1)
    return [instance.args for instance in task.instances]


def scored(task, answer):
    """lm-eval's metrics of one answer to the first document."""
    requests_of(task)
    for instance in task.instances:
        instance.resps = [answer]
    task.apply_filters()
    chain = task.instances[0].filtered_resps
    return {
        name: task.process_results(task.instances[0].doc, [text]) for name, text in chain.items()
    }


def table(rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def test_a_subject_of_each_form(load, pick, write_rows, tmp_path):
    """JSON lines, packed ones, a JSON list and Parquet in parts, in a config's folder or not."""
    for split in ("test", "dev"):
        write_rows(f"mmlu/anatomy/{split}.jsonl", [QUESTION] * 5)
        write_rows(f"mmlu/virology/{split}-00000-of-00002.parquet", [QUESTION] * 3)
        write_rows(f"mmlu/virology/{split}-00001-of-00002.parquet", [QUESTION] * 4)
        write_rows(f"mmlu/sociology.{split}.json", [QUESTION] * 6)
        write_rows(f"mmlu/management/{split}.jsonl.gz", [QUESTION] * 8)
    told = "mmlu: 53 of its 57 tasks are left out, as .*: mmlu_abstract_algebra, .* and 48 more"
    with pytest.warns(match=told):
        prepared, tasks = load(pick("cpt", "mmlu"), tmp_path / "data")
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    assert sizes == {
        "mmlu_anatomy": 5,
        "mmlu_virology": 7,
        "mmlu_sociology": 6,
        "mmlu_management": 8,
    }
    assert prepared.tasks == {"mmlu": "mmlu"}
    assert len(prepared.left_out["mmlu"]) == 53
    assert "mmlu_astronomy" in prepared.left_out["mmlu"]
    assert len(prepared.files["mmlu"]) == 10
    (text, answer), *others = requests_of(tasks["mmlu_virology"])
    assert text.startswith("The following are multiple choice questions (with answers) about viro")
    assert text.count("2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:") == 6
    assert text.count("Answer: B\n") == 5
    assert [answer, *(one[1] for one in others)] == [" A", " B", " C", " D"]


def test_the_mean_of_a_group_is_that_over_its_items(load, pick, write_rows, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    for subject, size in (("anatomy", 1), ("virology", 7)):
        for split in ("test", "dev"):
            write_rows(f"mmlu/{subject}/{split}.jsonl", [QUESTION | {"answer": size % 4}] * size)
    suite = pick("cpt", "mmlu")
    prepared, _ = load(
        Suite("x", "x.", (Benchmark(**vars(suite.benchmarks[0]) | {"shots": 0}),)),
        tmp_path / "data",
    )
    manager = TaskManager(include_path=[str(prepared.include_path)], include_defaults=False)
    results = simple_evaluate(
        "dummy", tasks=["mmlu"], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    right = [s["acc"] for samples in results["samples"].values() for s in samples]
    assert len(right) == 8
    assert results["results"]["mmlu"]["acc,none"] == pytest.approx(sum(right) / 8)


def test_chinese(load, pick, write_rows, tmp_path):
    """As JSON lines by subject; and as the archives of both sets hold them, cells kept as texts."""
    for split in ("val", "dev"):
        write_rows(f"ceval-exam/{split}/law_{split}.csv", table([LETTERED | {"B": "2.00"}] * 5))
        write_rows(f"ceval-exam/logic/{split}.jsonl", [LETTERED] * 6)
    for split in ("test", "dev"):
        write_rows(f"cmmlu/{split}/arts.csv", table([{"": 0, **CAPITALS}] * 5))
    prepared, tasks = load(load_suite("chinese"), tmp_path / "data")
    assert prepared.leaves == {
        "ceval": ("ceval_logic", "ceval_law"),
        "ceval_cot": ("ceval_cot_logic", "ceval_cot_law"),
        "cmmlu": ("cmmlu_arts",),
        "cmmlu_cot": ("cmmlu_cot_arts",),
    }
    (text, _), *_ = requests_of(tasks["ceval_law"])
    assert text.count("1+1=?\nA. 1\nB. 2.00\nC. 3\nD. 4\n答案：") == 6
    assert text.startswith("以下是中国关于法学的单项选择题")
    for name in ("ceval_cot_law", "cmmlu_cot_arts"):
        ((text, arguments),) = requests_of(tasks[name])
        assert text.startswith("请回答下面的单项选择题。") and text.endswith("\n\n分析：")
        assert text.count("1+1=?\nA. 1\nB. 2") == 1
        assert arguments["max_gen_toks"] == 1024
    task = tasks["cmmlu_cot_arts"]
    for answer, right in [
        ("一加一等于二。\n答案是B", 1),
        ("先看A，答案是A？不对。\n答案是 B。", 1),
        ("答案是C", 0),
        ("B", 0),
        ("答案是BC", 0),
        ("答案是Bravo", 0),
    ]:
        assert scored(task, answer)["strict-match"] == {"exact_match": right}, answer


def test_code(load, write_rows, tmp_path):
    function = {
        "task_id": "HumanEval/0",
        "prompt": "def one():\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }
    problem = {
        "task_id": 2,
        "prompt": "Write a function to add.",
        "code": "def add(a, b):\r\n    return a + b\r\n",
        "test_imports": [],
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
    }
    write_rows("openai_humaneval/openai_humaneval/test-00000-of-00001.parquet", [function] * 2)
    write_rows("humanevalplus/test.jsonl", [function] * 3)
    write_rows("mbpp/sanitized/test.jsonl", [problem] * 4)
    write_rows(
        "mbppplus/data/test-00000-of-00001-d5781c9c51e02795.parquet",
        [problem | {"test": "assert add(5, 5) == 10"}] * 5,
    )
    prepared, tasks = load(load_suite("code"), tmp_path / "data")
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == {
        "humaneval": 2, "humaneval_plus": 3, "mbpp": 4, "mbpp_plus": 5,
    }  # fmt: skip
    assert not prepared.left_out
    task = tasks["humaneval_plus"]
    ((text, arguments),) = requests_of(task)
    assert (text, arguments["max_gen_toks"]) == ("def one():\n", 1024)
    assert task.doc_to_target(task.eval_docs[0]) == "    return 1\n"
    assert task.eval_docs[0] == function
    ((text, _),) = requests_of(tasks["mbpp_plus"])
    *examples, last = text.split("Write a Python function.\n\n")
    assert len(examples) == 4 and all(one.endswith("```\n\n") for one in examples[1:])
    assert last == (
        "Task: Write a function to add.\nIt has to pass these tests:\nassert add(1, 2) == 3\n"
        "assert add(0, 0) == 0\n\nSolution:\n```python\n"
    )
    task = tasks["mbpp_plus"]
    assert task.doc_to_target(task.eval_docs[0]) == "def add(a, b):\n    return a + b\n```"
    assert task.eval_docs[0]["test"] == "assert add(5, 5) == 10"
    assert scored(task, "anything") == {"none": {"bypass": None}}


def test_the_examples_of_mbpp_are_right(load, pick, write_rows, tmp_path):
    problem = {"prompt": "x", "code": "x", "test_list": ["x"]}
    write_rows("mbpp/sanitized/test.jsonl", [problem])
    _, tasks = load(pick("code", "mbpp"), tmp_path / "data")
    examples = tasks["mbpp"].config.fewshot_config.samples
    assert len(examples) == 3
    for example in examples:
        exec(example["code"] + "\n".join(example["test_list"]), {})


def test_the_rest_of_original(load, pick, write_rows, tmp_path):
    arc = {
        "id": "a",
        "question": "Which is hot?",
        "choices": {"text": ["ice", "fire", "snow", "rain"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    }
    write_rows("ai2_arc/ARC-Challenge/test.jsonl", [arc])
    wrong = {f"Incorrect Answer {n}": f"{n}" for n in (1, 2, 3)}
    write_rows("gpqa/gpqa_main.csv", table([{"Question": "Q?", "Correct Answer": "0.50", **wrong}]))
    pro = {
        "question": "Q?",
        "options": ["x", "y"],
        "answer": "A",
        "cot_content": "A: Let's think step by step. It is x. The answer is (A).",
    }
    for split in ("test", "validation"):
        rows = [pro | {"category": name} for name in CATEGORIES for _ in range(5)]
        write_rows(f"MMLU-Pro/data/{split}-00000-of-00001.parquet", rows)
    suite = pick("original", "arc_challenge", "arc_challenge_chat", "gpqa", "gpqa_cot")
    prepared, tasks = load(suite, tmp_path / "data")
    assert prepared.leaves["gpqa_cot"] == ("gpqa_cot",)
    assert "0.50" in requests_of(tasks["gpqa"])[0][0]
    assert requests_of(tasks["arc_challenge"])[1] == ("Question: Which is hot?\nAnswer:", " fire")
    assert "B. fire" in requests_of(tasks["arc_challenge_chat"])[0][0]
    (tmp_path / "tasks").rename(tmp_path / "before")
    prepared, tasks = load(pick("original", "mmlu_pro"), tmp_path / "data")
    assert len(tasks) == 14  # Its subjects are rows of one file.
    assert len(tasks["mmlu_pro_computer_science"].eval_docs) == 5
    assert requests_of(tasks["mmlu_pro_law"])[0][0].count("Question:") == 6


def test_choices_are_shuffled_alike_in_every_process(pick, write_rows, tmp_path, monkeypatch):
    """lm-eval shuffles those of GPQA by the state that it finds, when the data are loaded."""
    import datasets

    wrong = {f"Incorrect Answer {n}": f"w{n}" for n in (1, 2, 3)}
    rows = [{"Question": f"Q{n}?", "Correct Answer": "r", **wrong} for n in range(20)]
    write_rows("gpqa/gpqa_main.csv", table(rows))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "usual")
    docs = []
    for state in (1, 2):
        random.seed(state)
        folder = tmp_path / f"tasks{state}"
        prepared = prepare_tasks(pick("original", "gpqa"), tmp_path / "data", folder)
        manager = find_tasks(["gpqa"], [prepared.include_path])
        (task,) = load_benchmark("gpqa", ["gpqa"], manager).tasks.values()
        docs.append(list(task.eval_docs))
    assert docs[0] == docs[1]
    assert len({doc["answer"] for doc in docs[0]}) == 4
    assert not (tmp_path / "usual").exists()


def test_tasks_that_need_packages_are_written_without_them(write_rows, tmp_path, pick):
    """lm-eval's code for MATH is imported when the tasks are loaded, not here."""
    row = {"problem": "1?", "solution": r"\boxed{1}", "level": "Level 5", "type": "Algebra"}
    path = write_rows("hendrycks_math/algebra/test.jsonl", [row])
    suite = pick("maths", "math", "math_hard")
    prepared = prepare_tasks(suite, tmp_path / "data", tmp_path / "tasks")
    assert prepared.leaves["math"] == ("math_algebra",)
    assert prepared.files["math"] == (path,)
    said = yaml.safe_load((tmp_path / "tasks/math_algebra.yaml").read_text())
    assert said["dataset_kwargs"]["data_files"] == {"test": [str(path)]}
    assert (said["dataset_path"], said["num_fewshot"], said["training_split"]) == ("json", 4, None)
    assert said["generation_kwargs"]["max_gen_toks"] == 1024
    group = yaml.safe_load((tmp_path / "tasks/math.yaml").read_text())
    assert [one["metric"] for one in group["aggregate_metric_list"]] == [
        "exact_match",
        "math_verify",
    ]
    group = yaml.safe_load((tmp_path / "tasks/math_hard.yaml").read_text())
    metrics = [one["metric"] for one in group["aggregate_metric_list"]]
    assert metrics == ["exact_match", "exact_match_original"]
    assert len(prepared.leaves["math_hard"]) == 7 and prepared.files["math_hard"] == ()


@pytest.mark.parametrize("name", ["chinese", "code", "cpt", "maths", "original", "quick", "small"])
def test_without_local_data_the_hub_is_asked(name, tmp_path):
    """Every task of every suite is known to lm-eval, and reads what the suite says."""
    from lm_eval.tasks import TaskManager

    suite = load_suite(name)
    prepared = prepare_tasks(suite, None, tmp_path / "tasks")
    index = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False).task_index
    assert not any(prepared.files.values()) and not prepared.left_out
    for one in suite.benchmarks:
        assert prepared.tasks[one.name] in index
        for leaf in prepared.leaves[one.name]:
            values = index[leaf].cfg
            assert values["dataset_path"] == one.dataset
            configs = (None, "main", "default", one.config)
            assert one.config == "*" or values.get("dataset_name") in configs
            assert values["num_fewshot"] == one.shots
            assert (values.get("test_split") or values["validation_split"]) == one.splits[0]
            kinds = {"choice": "multiple_choice", "likelihood": "loglikelihood"}
            assert values["output_type"] == kinds.get(one.kind, "generate_until")
            check_metrics(one, values)


def check_metrics(benchmark, values):
    """`strict` and `lenient` name metrics, and chains of filters, that the task has."""
    listed = values.get("metric_list") or [{"metric": "acc"}, {"metric": "acc_norm"}]
    metrics = {str(one["metric"]) for one in listed}
    chains = {one["name"] for one in values.get("filter_list") or [{"name": "none"}]}
    for metric in (benchmark.strict, benchmark.lenient):
        if metric and "," in metric:
            name, chain = metric.split(",")
            assert name in metrics and chain in chains, benchmark


def test_tasks_and_groups_of_ones_own(load, write_rows, tmp_path):
    """They may name code of their own folder, which is not run before lm-eval loads them."""
    path = write_rows("mine.jsonl", [{"q": "a?", "a": "b"}])
    folder = tmp_path / "mine"
    folder.mkdir()
    task = {"task": "one", "dataset_path": "json", "output_type": "generate_until"}
    task |= {"dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test"}
    task |= {"doc_to_target": "{{a}}", "metric_list": [{"metric": "exact_match"}]}
    text = yaml.safe_dump(task)
    (folder / "one.yaml").write_text(f"{text}doc_to_text: !function code.text\n")
    (folder / "two.yaml").write_text("include: one.yaml\ntask: two\ntag: twins\n")
    (folder / "all.yaml").write_text("group: all\ntask: [one, {task: two, num_fewshot: 0}]\n")
    (folder / "loop.yaml").write_text("group: loop\ntask: [loop]\n")
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\ndef text(doc):\n    return doc['q']\n"
    (folder / "code.py").write_text(code)
    mine = Benchmark("mine", ("all",), "generate", 1, strict="exact_match,none")
    prepare_tasks(Suite("x", "x.", (mine,)), None, tmp_path / "first", [folder])
    assert not mark.exists()
    prepared, tasks = load(Suite("x", "x.", (mine,)), tmp_path / "data", [folder])
    assert prepared.leaves == {"mine": ("mine_one", "mine_two")}
    assert requests_of(tasks["mine_two"])[0][0] == "a?"
    loop = Benchmark("mine", ("loop",), "generate", 1)
    with pytest.raises(ConfigError, match="'loop' contains itself"):
        prepare_tasks(Suite("x", "x.", (loop,)), None, tmp_path / "third", [folder])


def test_unknown_tasks(tmp_path):
    suite = Suite("x", "x.", (Benchmark("mine", ("gsm8k_cott",), "generate", 1),))
    with pytest.raises(ConfigError, match=r"task='gsm8k_cott' is not known.*mean 'gsm8k_cot'"):
        prepare_tasks(suite, None, tmp_path / "tasks")


def test_folders_that_do_not_do(tmp_path, pick):
    suite = pick("maths", "gsm8k")
    with pytest.raises(ConfigError, match=r"data_dir=.*is not a folder"):
        prepare_tasks(suite, tmp_path / "absent", tmp_path / "tasks")
    with pytest.raises(ConfigError, match=r"include_path=.*is not a folder"):
        prepare_tasks(suite, None, tmp_path / "tasks", [tmp_path / "absent"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    with pytest.raises(CheckpointError, match="full"):
        prepare_tasks(suite, None, tmp_path / "full")


def test_examples_that_are_not_there(write_rows, tmp_path, pick):
    write_rows("mmlu/anatomy/test.jsonl", [QUESTION])
    told = (
        r"benchmark 'mmlu' gives examples of the split dev, .* put it in .*mmlu/anatomy/dev.jsonl"
    )
    with pytest.raises(ConfigError, match=told):
        prepare_tasks(pick("cpt", "mmlu"), tmp_path / "data", tmp_path / "tasks")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (("test.jsonl", "test.json"), "test.json and .*test.jsonl are both there"),
        (("test.jsonl", "dev.parquet"), "must all be of one kind"),
        (("test-00000-of-00002.parquet", "dev.parquet"), "holds 1 of 2 parts"),
        (("test-00000-of-00001.parquet", "test.parquet"), "are both there"),
    ],
)
def test_files_that_do_not_go_together(write_rows, tmp_path, pick, files, told):
    for name in files:
        write_rows(f"mmlu/anatomy/{name}", [QUESTION])
    with pytest.raises(ConfigError, match=told):
        prepare_tasks(pick("cpt", "mmlu"), tmp_path / "data", tmp_path / "tasks")


def test_a_path_that_would_be_taken_for_a_pattern(tmp_path, pick, write_rows):
    path = write_rows("gsm8k/test.jsonl", [{"question": "?", "answer": "#### 1"}])
    path.parent.parent.rename(tmp_path / "data[1]")
    with pytest.raises(ConfigError, match="data cannot be read where a path has"):
        prepare_tasks(pick("maths", "gsm8k"), tmp_path / "data[1]", tmp_path / "tasks")


def test_names_do_not_lead_out_of_the_folder(tmp_path, write_rows):
    """A task file of somebody may call its config anything."""
    write_rows("secret/test.jsonl", [{"q": "a?"}])
    folder = tmp_path / "mine"
    folder.mkdir()
    values = {"task": "one", "dataset_path": "x/mine", "test_split": "test"}
    (folder / "one.yaml").write_text(yaml.safe_dump(values | {"dataset_name": "../secret"}))
    (tmp_path / "data/mine").mkdir()
    suite = Suite("x", "x.", (Benchmark("mine", ("one",), "generate", 1),))
    prepared = prepare_tasks(suite, tmp_path / "data", tmp_path / "tasks", [folder])
    assert prepared.files == {"mine": ()}
