"""Suites of benchmarks by name, and where their data lie; nothing here runs a model.

suite          What a suite says: its benchmarks' tasks, shots, metrics, chance levels
layouts        Where the files of a dataset may lie in a folder of a user's
rows           Rows of files that are not as the hub has them
quiet_harness  lm-eval without what it leaves behind
stock          The tasks behind names, of lm-eval and of ours
missing        What a benchmark needs that this machine has not, and how to get it
prepare        A folder of lm-eval tasks for a suite, which read local files where there are some

Suites are the YAML files in `files/`; `tasks/` holds tasks that lm-eval has not.
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.evaluate.suites.missing import what_is_left_out, what_is_missing
    from controlllm.evaluate.suites.prepare import Prepared, prepare_tasks
    from controlllm.evaluate.suites.stock import find_tasks
    from controlllm.evaluate.suites.suite import (
        KINDS,
        Benchmark,
        Suite,
        load_suite,
        suite_names,
    )

__all__ = [
    "KINDS",
    "Benchmark",
    "Prepared",
    "Suite",
    "find_tasks",
    "load_suite",
    "prepare_tasks",
    "suite_names",
    "what_is_left_out",
    "what_is_missing",
]

__getattr__, __dir__ = lazy_names(__name__)
