"""Rules of the repository that no other tool checks."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked_files() -> list[Path]:
    """Files that git knows; without git (a source archive) the test is skipped."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("needs a git checkout")
    return [path for name in listing.stdout.split("\0") if (path := ROOT / name).is_file()]


def test_no_source_file_is_over_400_lines():
    long = [path for path in SOURCES if len(path.read_text().splitlines()) > 400]
    assert long == [], "split them by idea"


def test_no_absolute_path_of_a_machine_is_committed():
    pattern = re.compile(rb"(?<![\w.])/(?:work|root|home|tmp)/[a-z]")
    found = []
    for path in tracked_files():
        if path.suffix in {".safetensors", ".png"}:
            continue
        found += [f"{path.relative_to(ROOT)}: {m}" for m in pattern.findall(path.read_bytes())]
    assert found == []


def test_constraints_pin_every_requirement_within_its_bounds():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (Requirement(line) for group in groups for line in group):
        name = canonicalize_name(requirement.name)
        if name == "controlllm":
            continue
        assert name in pins, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pins[name]), f"{requirement} against {pins[name]}"


def test_the_version_is_written_the_same_everywhere():
    import controlllm

    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert citation is not None
    assert PROJECT["version"] == citation[1] == controlllm.__version__


def test_imports_go_down_only():
    pytest.importorskip("importlinter.cli", reason="needs import-linter (the extra `test`)")
    # In a process of its own: it switches off every logger that is there.
    call = "raise SystemExit(lint_imports(no_cache=True))"
    code = f"from importlinter.cli import lint_imports; {call}"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_tests_that_wait_for_test_all_are_there():
    for line in (ROOT / "tests" / "cases.txt").read_text().splitlines():
        file, _, function = line.split()[0].partition("::")
        assert f"def {function}(" in (ROOT / file).read_text(), f"{line}: make tests/cases.txt anew"
