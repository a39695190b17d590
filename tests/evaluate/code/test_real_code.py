"""All of HumanEval, and MBPP: right solutions pass, wrong ones do not."""

import ast
import gzip
import json
from typing import ClassVar

import pytest

from controlllm.evaluate.code import CodeRunner, SandboxSettings, human_eval, mbpp


@pytest.fixture(scope="module")
def problems(shared_data) -> list[dict]:
    with gzip.open(shared_data / "eval/humaneval/HumanEval.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def basic_problems(shared_data) -> list[dict]:
    with (shared_data / "sft/mbpp/mbpp.jsonl").open() as file:
        return [json.loads(line) for line in file]


@pytest.fixture
def runner(walls) -> CodeRunner:
    return CodeRunner(walls, SandboxSettings(seconds=30))


class Mutate(ast.NodeTransformer):
    """Turns the first comparison or sum into its opposite."""

    OPPOSITE: ClassVar = {
        ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq, ast.Add: ast.Sub, ast.In: ast.NotIn, ast.NotIn: ast.In,
    }  # fmt: skip
    done = False

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if type(node) in self.OPPOSITE and not self.done:
            self.done = True
            return self.OPPOSITE[type(node)]()
        return super().generic_visit(node)


def mutated(problem: dict) -> str | None:
    """A solution that is wrong, most probably; None where there is nothing to turn round."""
    change = Mutate()
    whole = ast.parse(problem["prompt"] + problem["canonical_solution"])
    function = next(
        node
        for node in whole.body
        if isinstance(node, ast.FunctionDef) and node.name == problem["entry_point"]
    )
    changed = change.visit(function)
    body = [one for one in changed.body if not isinstance(getattr(one, "value", 0), ast.Constant)]
    lines = ast.unparse(ast.Module(body, [])).splitlines()
    return "".join(f"    {line}\n" for line in lines) if change.done else None


def without_reference(problem: dict) -> dict:
    """Its time is not what is tested here."""
    return problem | {"canonical_solution": "", "code": ""}


def test_ten_of_human_eval(runner, problems):
    chosen = problems[::17]
    right = [human_eval(one, one["canonical_solution"]) for one in chosen]
    wrong = [human_eval(without_reference(one), "    pass\n") for one in chosen]
    assert [one.passed for one in runner(right + wrong)] == [True] * 10 + [False] * 10


def test_all_canonical_solutions_of_human_eval_pass(runner, problems):
    programs = [human_eval(one, one["canonical_solution"]) for one in problems]
    outcomes = runner(programs)
    assert len(programs) == 164
    assert [p.task_id for p, o in zip(programs, outcomes, strict=True) if not o.passed] == []


def test_solutions_that_were_turned_round_fail(runner, problems):
    changed = [(one, mutated(one)) for one in problems]
    programs = [human_eval(without_reference(one), body) for one, body in changed if body]
    passed = [p for p, o in zip(programs, runner(programs), strict=True) if o.passed]
    assert len(programs) > 100
    assert len(passed) <= 2
    for one in passed:  # by plain Python these pass as well: the tests do not see the change
        exec(one.solution + "\n" + one.tests, {})


def test_a_sample_of_mbpp(runner, basic_problems):
    """And the problems whose tests use classes, attributes, types and modules of the solution."""
    special = {126, 367, 533, 596, 601, 927}
    chosen = [one for one in basic_problems if one["task_id"] in special or not one["task_id"] % 50]
    right = [mbpp(one, one["code"]) for one in chosen]
    wrong = [mbpp(without_reference(one), "def nothing(): pass") for one in chosen]
    outcomes = runner(right + wrong)
    assert [one.reason for one in outcomes[: len(chosen)]] == ["passed"] * len(chosen)
    assert not any(one.passed for one in outcomes[len(chosen) :])
