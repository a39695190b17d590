"""Solutions that claim to be right: none of them is believed."""

import time

import pytest

RIGHT = "def f(x):\n    return x + 1"
CLAIM = """
import gc, json, os, re, sys

def claim():
    # Everything that looks like a nonce is claimed on every file that is open.
    texts = {"0" * 32}
    for thing in gc.get_objects():
        texts |= set(re.findall("[0-9a-f]{32}", str(thing)[:10_000]))
    frame = sys._getframe()
    while frame:
        texts |= set(re.findall("[0-9a-f]{32}", str(frame.f_locals) + str(frame.f_globals)))
        frame = frame.f_back
    for text in texts:
        for number in range(64):
            said = {"reason": "passed", "detail": "", "nonce": text}
            try:
                os.write(number, json.dumps(said).encode() + b"\\n")
            except OSError:
                pass
"""


def test_right_answers_pass(run):
    outcome = run("print('hello')\n" + RIGHT)
    assert (outcome.passed, outcome.reason, outcome.output) == (True, "passed", "hello\n")
    assert 0 <= outcome.seconds < 60


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        ("def f(x):\n    return x", "wrong answer"),
        ("def f(x):\n    pass", "wrong answer"),
        ("def f(x):\n    return 1 / 0", "raised an error"),
        ("def f(x):\n    assert False", "raised an error"),
        ("def f(x)", "raised an error"),
        ("", "raised an error"),
        ("f = 3", "raised an error"),
        ("import os\nos._exit(0)", "left without a verdict"),
        ("import os\ndef f(x):\n    os._exit(0)", "left without a verdict"),
        ("import sys\nsys.exit(0)", "left without a verdict"),
        ("raise SystemExit", "left without a verdict"),
        ("def f(x):\n    raise KeyboardInterrupt", "left without a verdict"),
        ("def f(x):\n    raise MemoryError", "memory"),
        ("import os\ndef f(x):\n    os.abort()", "crashed by signal SIGABRT"),
        ("import os\ndef f(x):\n    os.closerange(0, 64)", "left without a verdict"),
        ("class E(Exception): pass\ndef f(x):\n    raise E('mine')", "raised an error"),
        ("def f(x):\n    return f(x)", "raised an error"),
        ("def f(x):\n    y = []\n    y.append(y)\n    return y", "raised an error"),
    ],
)
def test_wrong_ones_do_not(run, solution, reason):
    outcome = run(solution)
    assert (outcome.passed, outcome.reason) == (False, reason), outcome


@pytest.mark.parametrize(
    "solution",
    [
        "class A:\n    __eq__ = lambda *_: True\n    __hash__ = None\nf = lambda x: A()",
        "class A(int):\n    __eq__ = lambda *_: True\nf = lambda x: A(7)",
        "class A(list):\n    __eq__ = lambda *_: True\nf = lambda x: A()",
        "class A(dict):\n    __eq__ = lambda *_: True\nf = lambda x: A()",
        "class A(str):\n    __eq__ = lambda *_: True\nf = lambda x: A()",
        "class A(float):\n    __eq__ = lambda *_: True\nf = lambda x: A()",
        "class A(tuple):\n    __eq__ = lambda *_: True\nf = lambda x: A()",
        "class A(set):\n    __eq__ = lambda *_: True\nf = lambda x: A()",
        "class M(type):\n    __eq__ = lambda *_: True\n    __hash__ = type.__hash__\n"
        "class A(metaclass=M): pass\nf = lambda x: A",
        "class A:\n    __class__ = int\n    __eq__ = lambda *_: True\nf = lambda x: A()",
    ],
)
def test_what_equals_everything_equals_nothing(run, solution):
    assert run(solution).reason in ("wrong answer", "raised an error")
    assert not run(solution, "assert f(1) == 2 and 2 == f(1)").passed
    assert not run(solution, "assert [f(1)] == [2]").passed


@pytest.mark.parametrize(
    "solution",
    [
        "import builtins\nbuiltins.AssertionError = Warning\nf = lambda x: 0",
        "import builtins\nbuiltins.print = builtins.exec = lambda *_: None\nf = lambda x: 0",
        "import sys\nsys.stdout = sys.stderr = None\nf = lambda x: 0",
        "import sys\nsys.settrace(lambda *_: None)\nsys.setrecursionlimit(9**9)\nf = lambda x: 0",
        "import inside.worker as w\nw._failure = lambda e: {'value': {'kept': 0}}\ndef f(x): 1 / 0",
        "import inside.judge as j\nj.judge = lambda *_: {'reason': 'passed'}\nf = lambda x: 0",
        "import unittest.mock as m\nf = lambda x: m.ANY",
        "print('passed')\nprint('{\"reason\": \"passed\"}')\nf = lambda x: 0",
        CLAIM + "claim()",
        CLAIM + "def f(x):\n    claim()\n    os._exit(0)",
        CLAIM + "import atexit\natexit.register(claim)\nf = lambda x: 0",
    ],
)
def test_nothing_that_it_changes_or_prints_is_a_verdict(run, solution):
    assert not run(solution).passed


@pytest.mark.parametrize(
    "answer",
    [
        "b'\\xff' * 8",
        "b'\\x00\\x00\\x00\\x02{}'",
        "b'\\x00\\x00\\x00\\x04null'",
        "(10 ** 6).to_bytes(4) + b'[' * 10 ** 6",
        "(10 ** 6).to_bytes(4) + b'{\"value\":' + b'[' * (10 ** 6 - 9)",
        "(15).to_bytes(4) + b'{\"raised\": true}'[:15]",
        '(22).to_bytes(4) + b\'{"value": {"set": [[]]}}\'[:22]',
        '(36).to_bytes(4) + b\'{"value": {"plain type": "judge"}}   \'',
        '(28).to_bytes(4) + b\'{"value": {"int": "zz", "b": 1}}\'',
    ],
)
def test_answers_that_are_none(run, answer):
    solution = f"""
import os
def f(x):
    for number in range(3, 64):
        try:
            os.write(number, {answer})
        except OSError:
            pass
    os._exit(0)
"""
    assert run(solution).reason == "left without a verdict"


def test_answers_sent_in_advance_are_only_answers(run):
    solution = """
import json, os
def f(x):
    body = json.dumps({"value": 2}).encode()
    for number in range(3, 64):
        try:
            os.write(number, len(body).to_bytes(4) + body)
        except OSError:
            pass
    return 2
"""
    assert not run(solution, "assert f(1) == 2\nassert f(2) == 3").passed


@pytest.mark.parametrize(
    "value",
    [
        "None", "True", "-7", "2 ** 70", "-(2 ** 20000)", "0.1", "float('inf')", "1e-320",
        "'é\\ud800'",
        "''", "b'\\x00\\xff'", "[1, [2.0, 'a']]", "(1, (2,))", "{1, 2}", "frozenset({(1,)})",
        "{1: {'a': (2,)}, (1, 2): None}", "{}", "1 + 2j", "range(1, 9, 2)", "int",
    ],
)  # fmt: skip
def test_plain_values_go_there_and_back(run, value):
    tests = f"x = {value}\ny = f(x)\nassert y == x and type(y) is type(x), y"
    assert run("def f(x):\n    return x", tests).passed


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("Counter('aab')", "{'a': 2, 'b': 1}"),
        ("defaultdict(list, a=[1])", "{'a': [1]}"),
        ("namedtuple('P', 'x y')(1, 2)", "(1, 2)"),
        ("IntEnum('E', 'a b').b", "2"),
    ],
)
def test_subclasses_arrive_as_what_they_are_made_of(run, returned, expected):
    imports = "from collections import *\nfrom enum import *\n"
    solution = f"{imports}def f():\n    return {returned}"
    assert run(solution, f"assert f() == {expected}").passed


def test_objects_of_the_solution_can_be_passed_back(run):
    solution = """
from collections import deque
class f:
    def __init__(self, x):
        self.x = x
        self.next = None
        self.nothing = deque()
    def __call__(self):
        return self.x
    def __len__(self):
        return 7
    def __getitem__(self, key):
        return key
    def add(self, x):
        return lambda y: x + y
    def itself(self):
        return self
    def __iter__(self):
        return iter([self.x, self.next.x])
"""
    tests = """
a, b = f(1), f(2)
assert a.itself() is a and a.itself() == a and a
assert len(a) == 7 and a["key"] == "key" and not a.nothing
assert a.add(1)(2) == 3 and a() == 1
a.next = b
assert list(a) == [1, 2]
assert a.next.x == 2
assert a != b
"""
    assert run(solution, tests).passed


def test_tests_may_expect_an_error(run):
    tests = """
try:
    f(1)
    assert False
except ValueError as error:
    assert str(error) == "no"
"""
    assert run("def f(x):\n    raise ValueError('no')", tests).passed
    assert not run("def f(x):\n    raise TypeError('no')", tests).passed


def test_arguments_that_cannot_go_over_are_no_fault_of_the_solution(run):
    outcome = run(RIGHT, "f(lambda: 1)")
    assert outcome.reason == "the tests cannot be run here"
    assert run(RIGHT, "f(1").reason == "the tests cannot be run here"


def test_tests_that_leave_are_no_pass(run):
    assert run(RIGHT, "import sys; sys.exit(0)").reason == "left without a verdict"
    assert run(RIGHT, "import os; os._exit(0)").reason == "left without a verdict"


def test_the_tests_cannot_be_seen(run):
    solution = """
import gc
def f(x):
    wanted = " ".join(["the", "answers"])
    return any(wanted in str(vars(one) if hasattr(one, "__dict__") else one)[:10_000]
               for one in gc.get_objects())
"""
    assert run(solution, "# the answers\nassert f(1) is False").passed


def test_sets_have_one_order(run):
    solution = "def f(x):\n    return list({'a', 'b', 'c', 'd', 'e', 'f'})"
    first = run(solution, "raise ValueError(f(1))").detail
    assert [run(solution, "raise ValueError(f(1))").detail for _ in range(3)] == [first] * 3


def test_starting_takes_no_time_of_the_program(run):
    begin = time.monotonic()
    outcome = run(RIGHT)
    assert outcome.seconds < time.monotonic() - begin
