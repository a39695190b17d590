import sys

import pytest

from controlllm.evaluate.code import Outcome, Program, SandboxSettings, Walls, check_walls
from controlllm.evaluate.code.sandbox import run_program

SECONDS = 60.0  # for programs that end by themselves; the machine may be busy


@pytest.fixture(scope="session")
def walls() -> Walls:
    if sys.platform != "linux":
        pytest.skip("the walls are made of what Linux has")
    walls = check_walls()
    if not walls.stand:
        pytest.skip(walls.describe())
    return walls


@pytest.fixture
def run(walls, tmp_path, monkeypatch):
    """Run a solution against tests; whatever is left of it afterwards fails the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    def run(
        solution: str, tests: str = "assert f(1) == 2", seconds: float = SECONDS, **bounds: int
    ) -> Outcome:
        program = Program("test", solution, tests, ("f",))
        outcome = run_program(program, seconds, SandboxSettings(**bounds), walls.built)
        assert list(folder.iterdir()) == []
        return outcome

    return run
