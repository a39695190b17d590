"""The self-test of the walls finds what is missing, on kernels and in containers that have less."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from controlllm.common.errors import ConfigError
from controlllm.evaluate.code import Program, code_runner
from controlllm.evaluate.code.checks import WALLS, Walls

POOR = Path(__file__).with_name("poor_kernel.py")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="walls are made of Linux")


MISSING = {
    "unshare": set(),
    "landlock": set(),
    "users": set(),
    "seccomp": {"new processes", "privileges"},
    "unshare,landlock": {"reading files", "writing files"},
    "unshare,seccomp": {"network", "new processes", "writing files"},
    "unshare,landlock,seccomp": {
        *("reading files", "writing files", "network", "other processes", "new processes")
    },
}
"""What gets through where this is refused; nothing for either kind of walls without the other."""


def on_poor_kernel(*what: str) -> str:
    root = POOR.parents[3]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}:{root}"}
    command = [sys.executable, str(POOR), *what]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_here_nothing_gets_through(walls):
    assert walls.stand
    assert walls.through == {}
    walls.require()


def test_what_is_missing_is_found_and_named(walls):
    lines = [line for line in on_poor_kernel("walls", *MISSING).splitlines() if line[:1] == "{"]
    found = {refused: what for line in lines for refused, what in json.loads(line).items()}
    assert {refused: set(one["through"]) for refused, one in found.items()} == MISSING
    for refused, one in found.items():
        names = {name.replace("unshare", "namespaces") for name in refused.split(",")}
        names -= {"users"} if os.geteuid() == 0 else set()  # root makes namespaces without them
        names = {name.replace("users", "namespaces") for name in names}
        assert names <= one["refused"].keys()
        assert not names & set(one["built"])
        assert all(wall in one["said"] for wall in MISSING[refused])
        assert ("allow_unsafe_code" in one["said"]) == bool(MISSING[refused])


@pytest.mark.parametrize(
    ("refused", "files"),
    [("unshare", ["test_break_out.py", "test_verdict.py"]), ("landlock", ["test_break_out.py"])],
)
def test_programs_do_not_get_out_where_one_kind_of_wall_is_missing(walls, refused, files):
    said = on_poor_kernel("pytest", refused, *[str(POOR.with_name(name)) for name in files])
    assert " passed" in said
    assert "skipped" not in said
    assert "failed" not in said


def test_a_refusal_says_what_and_what_to_do():
    walls = Walls(("limits",), {"landlock": "not there"}, {"network": "reached a UDP port"})
    assert not walls.stand
    with pytest.raises(ConfigError) as error:
        walls.require()
    text = str(error.value)
    for part in ("network (reached a UDP port)", "landlock (not there)", "limits", "What helps"):
        assert part in text


def test_strict_refuses_and_unsafe_warns(walls, monkeypatch, caplog):
    program = Program("one", "f = 2", "", ())
    less = Walls(walls.built, {}, {"network": "reached a UDP port"})
    monkeypatch.setattr("controlllm.evaluate.code.runner.check_walls", lambda _: less)
    with pytest.raises(ConfigError, match="not run here: missing walls: network"):
        code_runner("strict")
    with caplog.at_level(logging.WARNING):
        assert code_runner("unsafe")([program])[0].passed
    assert "runs without all walls: missing walls: network (reached a UDP port)" in caplog.text


def test_every_wall_is_described():
    assert all(WALLS.values())
    assert {"reading files", "network", "verdict", "time"} <= WALLS.keys()
