"""The tests marked `gpu`, by pytest in this process; each is told as soon as it is done.

In a dry run they run on the CPU (the fixture `gpu` of tests/conftest.py). What a package is missing
for is skipped, with the reason.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

__all__ = ["marked_files", "run"]

ROOT = Path(__file__).resolve().parents[2]


def run(options: argparse.Namespace, emit: Callable[[dict[str, Any]], None]) -> None:
    """Run them."""
    if options.device == "cpu":
        os.environ["CONTROLLLM_GPU_TESTS_ON"] = "cpu"
    os.chdir(ROOT)
    words = ["-m", "gpu", "-q", "-p", "no:cacheprovider"]
    pytest.main([*words, *map(str, marked_files())], plugins=[Watch(emit)])


def marked_files() -> list[Path]:
    """The files in which a test is marked; all others need not be imported."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in files if "mark.gpu" in path.read_text("utf-8")]


class Watch:
    """A plugin of pytest that tells outcomes."""

    def __init__(self, emit: Callable[[dict[str, Any]], None]) -> None:
        self.emit = emit

    def pytest_collectreport(self, report: Any) -> None:
        """A file that could not be read, or that skips itself as a whole."""
        if report.outcome != "passed":
            self._tell(report, 0.0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test's call, and what went wrong before or after it."""
        if report.when == "call" or report.outcome != "passed":
            self._tell(report, report.duration)

    def _tell(self, report: Any, seconds: float) -> None:
        row = {"test": report.nodeid, "outcome": report.outcome, "seconds": seconds}
        if report.outcome == "skipped":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            row["note"] = str(reason).removeprefix("Skipped: ")
        elif report.outcome == "failed":
            row["note"] = str(report.longrepr).strip().splitlines()[-1]
        self.emit(row)
