from collections.abc import Iterator

import pytest

ROWS: list = []


@pytest.fixture(scope="session")
def table() -> Iterator[list]:
    """(case, requests, leads where vLLM wrote another token) of every case that ran."""
    return ROWS


def pytest_terminal_summary(terminalreporter) -> None:
    """The table of docs/results/vllm.md."""
    if not ROWS:
        return
    write = terminalreporter.write_line
    write("| base | expansion | vLLM | ranks | requests | equal | leads of others, nats |")
    write("|---|---|---|---|---|---|---|")
    for case, asked, others in ROWS:
        how = "compiled" if case.compiled else "eager"
        said = f"{case.base} | {', '.join(case.words())} | {how} | {case.ranks}"
        leads = ", ".join(f"{lead:.1g}" for lead in others)
        write(f"| {said} | {asked} | {asked - len(others)} | {leads} |")
