"""`controlllm report`: what several runs gained and lost, as one page to send to people."""

from dataclasses import dataclass, field
from pathlib import Path

from controlllm.cli.kit.parsing import parse_options
from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.storage.files import require_writable, write_text
from controlllm.evaluate.judging.gate import read_gate
from controlllm.evaluate.judging.report import ReportSettings, is_report, report_page
from controlllm.evaluate.judging.runs import read_runs

__all__ = ["ReportOptions", "run"]


@dataclass
class ReportOptions:
    """Write one self-contained HTML page on runs that were evaluated; no model is loaded."""

    runs: list[str]
    """Run folders with evaluations (`controlllm eval RUN --suite`), or folders of one evaluation;
    several stand side by side where they have one base."""
    output: str = "report.html"
    """The page."""
    gate: str | None = None
    """YAML file of rules, for a verdict (docs/judging.md)."""
    learned: list[str] = field(default_factory=list)
    """Benchmarks that were to be learned; the rest was to be kept. Empty = those that the gate asks
    gains of."""
    model: str | None = None
    """Label of the model that the report speaks of first; null = "tuned", or the last."""
    examples: int = setting(10, at_least=0, at_most=1000)
    """Flipped items shown of each benchmark."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: with the option and what is allowed.
        """
        check_values(self, "")


def run(argv: list[str]) -> None:
    """Write the page."""
    options = parse_options(ReportOptions, argv, "report", models=False)
    require_writable(options.output)
    if Path(options.output).is_file() and not is_report(options.output):
        raise ConfigError(
            f"output={options.output!r} exists and is no report of ours; choose another name."
        )
    settings = ReportSettings(
        gate=None if options.gate is None else read_gate(options.gate),
        learned=tuple(options.learned),
        model=options.model,
        examples=options.examples,
    )
    runs = read_runs(options.runs)
    text = report_page(runs, settings)
    write_text(options.output, text)
    size = len(text.encode()) / 1e6
    for note in (each.note for each in runs if each.note):
        print(note)
    print(f"{Path(options.output).resolve()}: {size:.1f} MB; open it in any browser.")
