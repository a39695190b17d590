"""Which tests run when, by measured time.

`make quick` runs the method and the units of the data engine; `make test` every law, of each test
function at least one case unless that alone takes long; `make test-all` all cases. `cases.txt` says
of functions that take long how many of their cases `make test` runs; the others are `slow`.

It is made of the times of runs, of which the quickest counts (a machine may be busy):

    python -m pytest -n 2 --junitxml report.xml && python -m tests.tiers report.xml [more.xml ...]
"""

import sys
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from xml.etree import ElementTree

import pytest

CASES = Path(__file__).with_name("cases.txt")
MOST_SECONDS = 2.0
"""What the cases of one function may take in `make test`, unless a single one takes more."""
MOST_OF_ONE = 6.0
"""A function whose quickest case takes more is left to `make test-all`."""


def mark_slow(items: Iterable[pytest.Item]) -> None:
    """Mark the cases that only `make test-all` runs; all cases of a function are asked for."""
    most = dict(line.split() for line in CASES.read_text().splitlines())
    seen = defaultdict[str, int](int)
    for item in items:
        function = item.nodeid.partition("[")[0]
        seen[function] += 1
        if seen[function] > int(most.get(function, sys.maxsize)):
            item.add_marker(pytest.mark.slow)


def cases_in_time(times: list[float]) -> int | None:
    """How many cases of a function `make test` runs; None = all.

    >>> cases_in_time([1.0, 1.0, 1.5]), cases_in_time([0.1, 5.0]), cases_in_time([9.0, 9.0])
    (2, 1, 0)
    >>> cases_in_time([5.0]) is None
    True
    """
    count = sum(total <= MOST_SECONDS for total in accumulate(times))
    count = count or int(times[0] <= MOST_OF_ONE)
    return count if count < len(times) else None


def main(*reports: str) -> None:
    """Write `cases.txt` from JUnit reports."""
    times = defaultdict[str, dict[str, float]](dict)
    for case in (case for name in reports for case in ElementTree.parse(name).iter("testcase")):
        file = case.get("classname", "").replace(".", "/") + ".py"
        name, seconds = case.get("name", ""), float(case.get("time", 0))
        cases = times[f"{file}::{name.partition('[')[0]}"]
        cases[name] = min(seconds, cases.get(name, seconds))
    found = {name: cases_in_time([*cases.values()]) for name, cases in sorted(times.items())}
    lines = [f"{name} {count}" for name, count in found.items() if count is not None]
    CASES.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
