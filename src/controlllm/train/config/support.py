"""The part of docs/support.md that is made of what runs are checked by.

python -m controlllm.train.config.support       # writes it
"""

import re
from collections.abc import Sequence
from pathlib import Path

from controlllm.common.packages.quantizers import QUANTIZERS, READ_ONLY, is_shared_by
from controlllm.common.settings import settings_with
from controlllm.train.config.compatibility import REFUSED, WAYS
from controlllm.train.config.run_config import RunConfig
from controlllm.train.config.strategies import STRATEGIES
from controlllm.train.config.unread import rules_of_runs

__all__ = ["MARKS", "page"]

MARKS = ("<!-- made by `python -m controlllm.train.config.support` -->", "<!-- end -->")


def page() -> str:
    """The tables, in Markdown."""
    lines = _table(
        ("`training.backend`", "`parallel.strategy`", "state"),
        [(f"`{backend}`", f"`{way}`", state) for (backend, way), state in WAYS.items()],
    )
    lines += ["", "Refused at the start, with the reason:", ""]
    lines += _table(
        ("setting", "with", "why", "instead"),
        [(str(row.one), str(row.other), row.why, row.instead) for row in REFUSED],
    )
    lines += ["", "A base in few bits, shared by several processes:", ""]
    lines += _table(
        ("quantised as", "`parallel.strategy`"),
        [(f"`{kind}`", _shared_by(kind)) for kind in [*QUANTIZERS.names(), *READ_ONLY]],
    )
    lines += ["", "A setting that is given and not read is refused, or warned of:", ""]
    lines += _table(
        ("setting", "where it is not read", "why, or when it is"),
        [
            (f"`{rule.field}`", "refused" if rule.refuse else "warned of", rule.remedy)
            for rule in rules_of_runs(RunConfig)
        ],
    )
    free = [f"`{name}`" for name in settings_with(RunConfig, {"may_change": True})]
    lines += ["", f"A run goes on with other values of {', '.join(free)}; of nothing else."]
    return "\n".join(lines)


def _shared_by(kind: str) -> str:
    names = [name for name in STRATEGIES.names() if is_shared_by(kind, STRATEGIES.get(name))]
    return ", ".join(names) or "none: refused"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def write_page(file: Path) -> None:
    """Put the tables between their marks in a file."""
    start, end = MARKS
    text = file.read_text()
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    file.write_text(pattern.sub(lambda _: f"{start}\n{page()}\n{end}", text))


if __name__ == "__main__":
    write_page(Path("docs/support.md"))
