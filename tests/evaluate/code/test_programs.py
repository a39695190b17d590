"""What a model wrote becomes a program: what is taken for code, and what is not."""

import json
import subprocess
import sys

import pytest

from controlllm.common.errors import DataError
from controlllm.evaluate.code import SandboxSettings, human_eval, in_format, mbpp, run_program
from controlllm.evaluate.code.programs import called_names, find_code

ROW = {
    "task_id": "HumanEval/0",
    "prompt": "import math\n\ndef helper(x):\n    return x\n\ndef add(a, b):\n    '''Add.'''\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == helper(3)\n",
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
}
BODY = "    return helper(a) + b\n"
WHOLE = "def add(a, b):\n    return helper(a) + b\n"
SAID = "Sure! Here is the function:\n\n"


def outcomes(walls, *programs):
    return [run_program(one, 60, SandboxSettings(), walls.built).passed for one in programs]


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        (BODY, True, True),
        (BODY + "\nprint(add(1, 2))\n\ndef more(", True, True),
        (BODY + "\nThis adds.", False, True),
        (f"{SAID}```python\n{WHOLE}```\nIt adds.", False, True),
        (f"```\n{WHOLE}```", False, True),
        (f"    # It adds.\n```\n{WHOLE}```", False, True),
        (f"{BODY}```\nor\n```python\n{WHOLE.replace('+', '-')}```", True, True),
        (f"```py\n{WHOLE}", False, True),
        (f"```python\n{BODY}```", False, True),
        (f"{SAID}{WHOLE}\nIt adds.", False, True),
        (f"```python\nadd(1, 2)\n```\nand\n```python\n{WHOLE}```", False, True),
        (f"```bash\npip install add\n```\n```python\n{WHOLE}```", False, True),
        ("I cannot do that.", False, False),
        ("", False, False),
        ("```python\n```", False, False),
        ("```javascript\nfunction add(a, b) { return a + b }\n```", False, False),
        (BODY.replace("+", "-") + "\nThis adds.", False, False),
    ],
)
def test_strict_is_the_format_and_lenient_finds_the_code(walls, completion, strict, lenient):
    programs = human_eval(ROW, completion), human_eval(ROW, completion, "lenient")
    assert outcomes(walls, *programs) == [strict, lenient]


def test_human_eval_program():
    program = human_eval(ROW, BODY)
    assert program.solution == ROW["prompt"] + BODY
    assert program.reference == ROW["prompt"] + ROW["canonical_solution"]
    assert (program.names, program.setup) == (("add",), ROW["prompt"])
    for completion, expected in {
        BODY: True,
        "    return 7": True,
        BODY + "```\nIt adds.": True,
        f"{SAID}{BODY}": False,
        f"```python\n{WHOLE}```": False,
        "": False,
        "\n\n": False,
        "    return (": False,
        "    # It adds.\n": False,
    }.items():
        for reading in ("strict", "lenient"):
            assert human_eval(ROW, completion, reading).in_format == expected, completion
    with pytest.raises(DataError, match="lacks test"):
        human_eval({**ROW, "test": None}, BODY)


MBPP = {
    "task_id": 7,
    "code": "def double(x):\n    return 2 * x",
    "test_list": ["assert double(2) == 4", "assert double(3) == 6"],
}
CHEAT = "def double(x):\n    return {2: 4, 3: 6}[x]"
PLUS = """
import numpy as np
inputs, results = [[4], [2.5]], [8, 5.0]
for one, expected in zip(inputs, results):
    assert np.allclose(double(*one), expected)
"""


def test_mbpp_plus_is_graded_by_its_extended_tests(walls):
    plus = {**MBPP, "test": PLUS}
    right = [mbpp(row, MBPP["code"]) for row in (MBPP, plus)]
    cheats = [mbpp(row, CHEAT) for row in (MBPP, plus)]
    assert outcomes(walls, *right, *cheats) == [True, True, True, False]


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        (MBPP["code"] + "\n[DONE]\nmore", True, True),
        (f"```python\n{MBPP['code']}\n```", False, True),
        (f"Here:\n{MBPP['code']}\nThat is it.", False, True),
        (MBPP["code"] + "\n```\nIt doubles.", True, True),
        (MBPP["code"] + f"\n```\nAlso:\n```python\n{CHEAT}0\n```", True, True),
        (f"# It doubles.\n```python\n{MBPP['code']}\n```", False, True),
        ("[DONE]", False, False),
    ],
)
def test_mbpp_is_read_in_two_ways(walls, completion, strict, lenient):
    programs = mbpp(MBPP, completion), mbpp(MBPP, completion, "lenient")
    assert outcomes(walls, *programs) == [strict, lenient]


def test_mbpp_in_format():
    formats = {
        MBPP["code"]: True,
        CHEAT: True,
        "": False,
        "```python\nx = 1": False,
        "Well.": False,
    }
    for completion, expected in formats.items():
        assert mbpp(MBPP, completion).in_format == expected, completion


def test_what_tests_call_in_the_solution():
    tests = "import math\nfor i in range(3): assert f(Pair(i), [g(x) for x in y]) == math.pi\n"
    assert called_names(tests, "", "", "t") == (("f", "Pair", "g", "y"), ())
    assert called_names("assert set(f(sys.maxsize)) == h", "h = 1", "", "t") == (("f",), ("sys",))


def test_a_builtin_is_the_solutions_only_if_the_reference_replaces_it(walls):
    """Else a model could replace what the tests compare with."""
    asserts = ["assert sum(1, 2) == 3"]
    row = {"task_id": 1, "code": "def sum(a, b):\n    return a + b", "test_list": asserts}
    cheat = "def double(x): pass\ndef set(x): return 1\n"
    checked = {**MBPP, "test_list": ["assert set(double([1])) == {1}"]}
    assert outcomes(walls, mbpp(row, row["code"]), mbpp(checked, cheat)) == [True, False]


@pytest.mark.parametrize("row", [{}, {"task_id": 1}, {"task_id": 1, "test_list": ["assert ("]}])
def test_rows_that_are_none(row):
    with pytest.raises(DataError):
        mbpp(row, "")


def test_the_code_is_found_up_to_where_it_stops_parsing():
    text = "Well.\nimport math\ndef f(x):\n    return x\nAs you see, it's done.\nBye"
    assert find_code(text, ["f"]) == "import math\ndef f(x):\n    return x\n"
    assert find_code("no code here", ["f"]) == "no code here"
    assert find_code("def f(:\n", ["f"]) == "def f(:\n"


HOSTILE = """
import sys, threading
from controlllm.evaluate.code.programs import find_code, in_format
for unit in sys.argv[1:]:
    text = "def f():\\n    x = " + (unit * 100_000)[:60_000] + "1"
    for one in (text, text[:2000], (unit * 10**6)[:10**6]):
        thread = threading.Thread(target=lambda: (in_format(one), find_code(one, ["f"])))
        thread.start()
        thread.join()
print("alive")
"""


def test_texts_that_would_break_a_parser_are_no_code():
    units = ["(", "[", "{", "-", "not ", "lambda:", "f(", "a.", "1+", "1**", "a if b else ", "a=",
             "a<", "f'{", "(a:=", "~", "\\\n", "await ", "if 1:\n ", "elif 1:\n pass\n", "```\n",
             "\0", "\ud800".encode("utf-8", "replace").decode()]  # fmt: skip
    command = [sys.executable, "-c", HOSTILE, *[one for one in units if one != "\0"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.stdout.splitlines()[-1:] == ["alive"], done.stderr[-2000:]
    assert not in_format("(" * 1000)
    assert not in_format("x = 1\n" * 20_000)
    assert not in_format("\0")
    assert in_format("x = '\\d'")


def test_a_row_of_json_is_enough(shared_data):
    row = json.loads((shared_data / "sft/mbpp/mbpp.jsonl").open().readline())
    assert mbpp(row, row["code"]).names == ("min_cost",)
