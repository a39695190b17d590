"""Every example runs as it stands, offline, on the small base that ships with the package."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("datasets", "peft", "trl")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_example_runs(path, tmp_path):
    for package in OPTIONAL:
        if re.search(rf"^(from|import) {package}\b", path.read_text(), re.M):
            pytest.importorskip(package)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HOME": str(tmp_path)}
    command = [sys.executable, str(path)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip(), "it prints nothing"
