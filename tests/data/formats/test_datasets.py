"""Each data set's documented row becomes the expected document; anything odd names its column."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controlllm.common.errors import DataError
from controlllm.data.formats import FORMATS, to_document

Turns = list[dict[str, str]]


def talk(*contents: str, system: str = "") -> Turns:
    """Contents of user and assistant by turns, after a system message unless that is empty."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns


@dataclass(frozen=True)
class Case:
    """A row as its data set documents it, what it must become, and the columns that matter."""

    row: dict[str, Any]
    document: Any
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


def alpaca_case(instruction: str, more: str, output: str) -> Case:
    row = {"instruction": instruction, "input": more, "output": output}
    question = f"{instruction}\n{more}" if more else instruction
    return Case(row, talk(question, output), ("instruction", "output"), ("input",))


LONG_SOLUTION = "We add the two numbers step by step. " * 8 + "\\boxed{3}"
TREE = {
    "message_tree_id": "t",
    "tree_state": "ready_for_export",
    "prompt": {
        "message_id": "t", "text": "q", "role": "prompter", "lang": "en", "rank": None,
        "replies": [
            {"message_id": "b", "text": "worse", "role": "assistant", "rank": 1, "replies": []},
            {"message_id": "a", "text": "better", "role": "assistant", "rank": 0, "replies": [
                {"message_id": "c", "text": "more?", "role": "prompter", "replies": []}]},
        ],
    },
}  # fmt: skip
CASES: dict[str, Case] = {
    "messages": Case({"messages": talk("q", "a")}, talk("q", "a"), ("messages",)),
    "sharegpt": Case(
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
         "system": "s"},
        talk("q", "a", system="s"), ("conversations",), ("system",),
    ),
    "alpaca": Case(
        {"instruction": "q", "input": "i", "output": "a", "text": "Below is an instruction ..."},
        talk("q\ni", "a"), ("instruction", "output"), ("input", "system"),
    ),
    "prompt_completion": Case(
        {"prompt": "q", "completion": "a"}, talk("q", "a"), ("prompt", "completion")
    ),
    "preference": Case(
        {"prompt": "q", "chosen": "a", "rejected": "b"}, talk("q", "a"), ("prompt", "chosen")
    ),
    "text": Case({"text": "t"}, "t", ("text",)),
    "openmathinstruct_2": Case(
        {"problem": "What is 1 + 2?", "generated_solution": LONG_SOLUTION,
         "expected_answer": "3", "problem_source": "augmented_math"},
        talk(
            "Solve the following math problem. Make sure to put the answer (and only answer) "
            "inside \\boxed{}.\n\nWhat is 1 + 2?",
            LONG_SOLUTION,
        ),
        ("problem", "generated_solution"),
    ),
    "gsm8k": Case(
        {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 24"},
        talk("How many?", "48/2 = <<48/2=24>>24 clips.\n#### 24"),
        ("question", "answer"),
    ),
    "ultrainteract": Case(
        {"task": "Coding", "dataset": "codecontest", "instruction": "Write it.",
         "response": "def f(): ...", "id": "1", "parent_id": "0"},
        talk("Write it.", "def f(): ..."), ("instruction", "response"),
    ),
    "opc_sft_stage1": Case(
        {"instruction": "q", "output": "a", "tag": "x"}, talk("q", "a"), ("instruction", "output")
    ),
    "opc_sft_stage2": Case(
        {"seq_id": 1, "instruction": "q", "output": "a", "code": "c", "entry_point": "f",
         "testcase": ["assert f()"]},
        talk("q", "a"), ("instruction", "output"),
    ),
    "opc_annealing": Case({"text": "def f(): ...", "lang": "python"}, "def f(): ...", ("text",)),
    "mbpp": Case(
        {"text": "Add two numbers.", "code": "def add(a, b):\r\n    return a + b", "task_id": 601,
         "test_setup_code": "", "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
         "challenge_test_list": []},
        talk(
            "Add two numbers.\nYour code should pass these tests:\n\n"
            "assert add(1, 2) == 3\nassert add(0, 0) == 0",
            "def add(a, b):\n    return a + b",
        ),
        ("text", "code", "test_list"),
    ),
    "alpaca_zh": alpaca_case("保持健康的三个提示。", "", "吃好，睡好，多运动。"),
    "alpaca_gpt4_zh": alpaca_case("把它变成疑问句", "他走了", "他走了吗？"),
    "ruozhiba": alpaca_case("只剩一个心脏了还能活吗？", "", "能，人本来就只有一个心脏。"),
    "stem_zh": alpaca_case("什么是光合作用？", "", "植物用光能制造有机物的过程。"),
    "llama_3_syne": Case({"text": "从前有一座山。"}, "从前有一座山。", ("text",)),
    "ultrachat_200k": Case(
        {"prompt": "q", "prompt_id": "1", "messages": talk("q", "a", "r", "b")},
        talk("q", "a", "r", "b"), ("messages",),
    ),
    "ultrafeedback": Case(
        {"prompt": "q", "prompt_id": "1", "chosen": talk("q", "good"),
         "rejected": talk("q", "bad"), "messages": talk("q", "good"), "score_chosen": 8.0,
         "score_rejected": 2.0},
        talk("q", "good"), ("chosen",),
    ),
    "openorca": Case(
        {"id": "flan.1", "system_prompt": "Be kind.", "question": "q", "response": "a"},
        talk("q", "a", system="Be kind."), ("question", "response"), ("system_prompt",),
    ),
    "openhermes_2_5": Case(
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
                           {"from": "gpt", "value": "a"}],
         "source": "x", "system_prompt": None, "title": None},
        talk("q", "a", system="s"), ("conversations",),
    ),
    "magpie": Case(
        {"conversation_id": "1", "input1": "q", "output1": "a",
         "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"},
                           {"from": "human", "value": "r"}, {"from": "gpt", "value": "b"}]},
        talk("q", "a", "r", "b"), ("conversations",),
    ),
    "samsum": Case(
        {"id": "1", "dialogue": "A: Hi\nB: Hello", "summary": "A and B greet."},
        talk("Summarize this dialogue:\n\nA: Hi\nB: Hello", "A and B greet."),
        ("dialogue", "summary"),
    ),
    "redpajama": Case(
        {"text": "t", "meta": "{'timestamp': ''}", "red_pajama_subset": "c4"}, "t", ("text",)
    ),
    "oasst": Case(TREE, talk("q", "better"), ("prompt",)),
}  # fmt: skip

NAMES = [name for name in FORMATS.names() if not name.startswith("test_")]


def test_every_format_has_its_case() -> None:
    assert set(NAMES) == set(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_the_documented_row_becomes_the_document(name: str) -> None:
    assert to_document(CASES[name].row, format=name) == CASES[name].document


@pytest.mark.parametrize("name", NAMES)
def test_hostile_rows_name_the_column(name: str) -> None:
    """The law of all formats: missing, null, empty, blank and wrong types never pass in silence."""
    case = CASES[name]
    for column in case.needed:
        without = {key: value for key, value in case.row.items() if key != column}
        values: list[Any] = [
            None,
            "",
            " \n",
            [],
            {},
            {"a": 1},
            True,
            b"bytes",
            [1],
            [None],
            7,
            object(),
        ]
        for row in [without, *({**case.row, column: value} for value in values)]:
            with pytest.raises(DataError, match=f"column '{column}'") as caught:
                pytest.fail(f"{column}={row.get(column)!r} -> {to_document(row, format=name)!r}")
            assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", NAMES)
def test_optional_columns_may_be_absent_but_not_wrong(name: str) -> None:
    case = CASES[name]
    for column in case.optional:
        empty = [to_document({**case.row, column: value}, format=name) for value in (None, "")]
        without = {key: value for key, value in case.row.items() if key != column}
        assert empty == [to_document(without, format=name)] * 2
        for value in ({"a": 1}, True, [1], ["a"], 7, 0.5):
            with pytest.raises(DataError, match=f"column '{column}'"):
                to_document({**case.row, column: value}, format=name)


@pytest.mark.parametrize("name", NAMES)
def test_columns_can_be_mapped(name: str) -> None:
    case = CASES[name]
    row = {f"my_{key}" if key in case.needed else key: value for key, value in case.row.items()}
    columns = {key: f"my_{key}" for key in case.needed}
    assert to_document(row, format=name, columns=columns) == case.document


class Noting(dict[str, Any]):
    """A row that remembers which of its columns were asked for."""

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


@pytest.mark.parametrize("name", NAMES)
def test_formats_tell_every_column_that_they_read(name: str) -> None:
    """Else `columns` would refuse to map one of them."""
    row = Noting(CASES[name].row)
    known = FORMATS.get(name)
    known.convert(row)
    assert row.asked and known.reads is not None
    assert row.asked <= set(known.reads)


LIMITS = [
    ("Why?", 199, False), ("Why?", 200, True), ("Why?", 3072, True), ("Why?", 3073, False),
    ("x" * 3072, 200, True), ("x" * 3073, 200, False),
]  # fmt: skip


@pytest.mark.parametrize(("problem", "length", "kept"), LIMITS)
def test_openmathinstruct_leaves_out_by_length(problem: str, length: int, kept: bool) -> None:
    row = {"problem": problem, "generated_solution": "s" * length}
    assert (to_document(row, format="openmathinstruct_2") is not None) == kept


def test_openorca_without_a_system_prompt_has_no_system_message() -> None:
    row = {"system_prompt": "", "question": "q", "response": "a"}
    assert to_document(row, format="openorca") == talk("q", "a")


def test_mbpp_tests_must_be_texts() -> None:
    row = {"text": "t", "code": "c", "test_list": ["assert f()", None]}
    with pytest.raises(DataError, match="'test_list', item 1 is a NoneType"):
        to_document(row, format="mbpp")


def read_json(path: Path) -> Iterator[dict[str, Any]]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    if ".jsonl" in path.suffixes:
        yield from map(json.loads, text.splitlines())
    else:
        yield from json.loads(text)


def test_real_gsm8k(shared_data: Path) -> None:
    rows = list(read_json(shared_data / "sft" / "gsm8k" / "train.jsonl.gz"))
    documents = [to_document(row, format="gsm8k") for row in rows]
    assert len(documents) == 7473
    assert documents[0] == talk(
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips "
        "in May. How many clips did Natalia sell altogether in April and May?",
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 "
        "clips altogether in April and May.\n#### 72",
    )
    assert all(isinstance(d, list) and "\n#### " in d[1]["content"] for d in documents)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_real_mbpp(shared_data: Path) -> None:
    documents = []
    for row in read_json(shared_data / "sft" / "mbpp" / "mbpp.jsonl"):
        document = to_document(row, format="mbpp")
        assert isinstance(document, list)
        question, code = (message["content"] for message in document)
        assert question.startswith(row["text"].split("\r")[0]) and "\r" not in question + code
        assert question.endswith(row["test_list"][-1].replace("\r\n", "\n").rstrip())
        compile(code, str(row["task_id"]), "exec")
        documents.append(document)
    assert len(documents) == 974
    assert documents[0][0]["content"] == (
        "Write a function to find the minimum cost path to reach (m, n) from (0, 0) for the given "
        "cost matrix cost[][] and a position (m, n) in cost[][].\n"
        "Your code should pass these tests:\n\n"
        "assert min_cost([[1, 2, 3], [4, 8, 2], [1, 5, 3]], 2, 2) == 8\n"
        "assert min_cost([[2, 3, 4], [5, 9, 3], [2, 6, 4]], 2, 2) == 12\n"
        "assert min_cost([[3, 4, 5], [6, 10, 4], [3, 7, 5]], 2, 2) == 16"
    )


ALPACA_LIKE = [
    ("gpteacher_codegen/codegen-instruct.json.gz", 4535, {"output": "response"}),
    ("dolly2k/dolly_train.json.gz", 2000, {}),
    ("identity/identity.json", 91, {}),
    ("chat_dataset_zh_extra/code_qa_zh.json.gz", 9057, {}),
    ("chat_dataset_zh_extra/int_add_sub_zh.json", 500, {}),
]


@pytest.mark.parametrize(("file", "rows", "columns"), ALPACA_LIKE)
def test_real_instruction_files(
    shared_data: Path, file: str, rows: int, columns: dict[str, str]
) -> None:
    """Files of Alpaca's shape read the same by recognition and by a data set's name."""
    count = 0
    for row in read_json(shared_data / "sft" / file):
        document = to_document(row, columns=columns)
        assert document == to_document(row, format="alpaca_zh", columns=columns)
        assert isinstance(document, list) and document[-1]["role"] == "assistant"
        assert row[columns.get("output", "output")] == document[-1]["content"]
        count += 1
    assert count == rows
