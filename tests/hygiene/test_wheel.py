"""The wheel: all of the package and nothing else, and it works where there is no checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make dist` makes it: from the source archive."""
    pytest.importorskip("hatchling", reason="needs hatchling and build (the extra `test`)")
    folder = tmp_path_factory.mktemp("dist")
    call = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    subprocess.run(call, cwd=repository, check=True)
    (made,) = folder.glob("*.whl")
    return made


def test_it_holds_the_package_and_nothing_else(wheel: Path, repository: Path) -> None:
    source = repository / "src"
    files = (path for path in source.rglob("*") if path.is_file())
    package = {
        path.relative_to(source).as_posix() for path in files if "__pycache__" not in path.parts
    }
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == package
    ends = {Path(name).suffix for name in package}
    assert {".safetensors", ".yaml", ".html", ".js", ".css", ".typed"} <= ends


def test_the_demo_runs_from_it_outside_any_checkout(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(wheel)], check=True)
    # What it needs is in the environment of the tests, whose .pth files are not read from here.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))

    def run(*words: str) -> str:
        outer = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
        done = subprocess.run(words, cwd=tmp_path, env=outer, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = str(environment / "bin" / "controlllm")
    place = run(str(python), "-c", "import controlllm; print(controlllm.__file__)")
    assert Path(place.strip()).is_relative_to(environment)
    assert "--max_steps" in run(command, "demo", "--help")
    told = run(command, "demo", "--max_steps", "1", "--eval_passages", "1")
    assert "Control LLM, retain" in told and (tmp_path / "demo-output" / "plane.png").is_file()
