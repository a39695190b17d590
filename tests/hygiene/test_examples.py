"""Every example runs as it stands, offline, on the small base that ships with the package."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("datasets", "peft", "trl")


RUN = """
import runpy, sys
for path in sys.argv[1:]:
    print(f"# {path}", flush=True)
    sys.argv = [path]
    runpy.run_path(path, run_name="__main__")
"""


def can_run(path):
    imported = re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.M)
    return all(find_spec(name) for name in OPTIONAL if name in imported)


def test_examples_run(tmp_path):
    """One after the other in a new process, which imports once what all of them need."""
    paths = [str(path) for path in sorted((ROOT / "examples").glob("*.py")) if can_run(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", RUN, *paths],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    printed = re.split(r"^# (.+\.py)\n", result.stdout, flags=re.M)[1:]
    assert printed[::2] == paths
    for path, text in zip(printed[::2], printed[1::2], strict=True):
        assert text.strip(), f"{path} prints nothing"
