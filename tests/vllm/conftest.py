from collections.abc import Iterator

import pytest

ROWS: list = []


@pytest.fixture(scope="session")
def table() -> Iterator[list]:
    """Of every case that ran: (case, how its requests compare with transformers)."""
    return ROWS


def pytest_terminal_summary(terminalreporter) -> None:
    """The table of docs/results/vllm.md."""
    if not ROWS:
        return
    write = terminalreporter.write_line
    write("| base | expansion | vLLM | ranks | equal | ties | other |")
    write("|---|---|---|---|---|---|---|")
    for case, found in ROWS:
        how = "compiled" if case.compiled else "eager"
        said = f"{case.base} | {', '.join(case.words())} | {how} | {case.ranks}"
        write(f"| {said} | {found['equal']} | {found['tie']} | {found['other']} |")
