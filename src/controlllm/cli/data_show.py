"""What `controlllm data inspect` prints: for people at a terminal, and as readable in a log."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from controlllm.common.text.readable import readable
from controlllm.data import DataConfig
from controlllm.data.inspect.report import Sample, SourceReport, Span, bars, shorten
from controlllm.evaluate import format_table

__all__ = ["Paper", "bytes_text", "count_text"]

SAMPLE_CHARACTERS = 400
"""Characters shown of one part of a sample."""

_LEFT_OUT = {
    "filtered": "filtered",
    "dropped": "longer than {max_length} (dropped)",
    "without_targets": "without targets",
    "duplicates": "duplicates",
    "bad_rows": "bad",
}
_CUT = {"split": "split into pieces", "truncated": "truncated"}


class Paper:
    """Prints reports.

    Without colour, targets of samples stand in brackets.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.plain = console.options.ascii_only
        self.coloured = console.color_system is not None and not console.no_color
        self.brackets = ("[[", "]]") if self.plain else ("⟦", "⟧")
        self._begun = False

    def source(self, report: SourceReport, max_length: int) -> None:
        """Print one source."""
        if self._begun:
            self._print("")
        self._begun = True
        name, path = f"{report.group} {readable(report.name)}", readable(report.path)
        self._print(Text.assemble((name, "bold"), (f"  {path}", "dim")))
        if report.error:
            self._line("error", report.error, "red")
            return
        for label, text in self._numbers(report, max_length):
            self._line(label, text)
        self._bad_rows(report)
        self._line("prepared", f"yes, in {report.prepared}" if report.prepared else "no")
        for note in report.notes:
            self._line("note", note)
        for sample in report.samples:
            self._sample(sample)

    def mix(self, config: DataConfig, mix: Mapping[str, Any] | None) -> None:
        """Print how sources are mixed and batched."""
        self._print("")
        self._print(Text(f"mix  shares of {config.mix_by}", style="bold"))
        if mix is None:
            self._line("note", "not known before every train and replay source shows examples")
            return
        self._print(format_table(*_shares(config, mix)))
        rows, fill = mix["rows_per_item"], 100 * mix["fill"]
        if config.packing:
            strategy = config.packing_strategy.replace("_", " ")
            text = f"{fill:.1f} % of a slot of {config.max_length:,} tokens is filled"
            self._line("packing", f"{text} ({strategy}), {rows:.1f} documents in each")
            if share := 100 * mix["repeated_bos"]:
                self._line("", f"{share:.2f} % of its tokens are BOS before the rests of documents")
        else:
            text = f"{100 - fill:.1f} % of the tokens of a batch are padding"
            self._line("padding", f"{text}, {rows:.1f} rows in each")
        if per_epoch := mix["steps_per_epoch"]:
            self._line("steps", f"one epoch of train is about {per_epoch:,.1f} steps on one device")

    def _numbers(self, report: SourceReport, max_length: int) -> Iterator[tuple[str, str]]:
        stats = report.stats
        yield "rows", _layout(report)
        if not stats.rows:
            return
        if report.tokens is not None and report.examples is not None:
            source = "all rows" if report.complete else f"a sample of {stats.rows:,} rows"
            examples, tokens, targets = (
                f"{size:,.0f}" if report.complete else f"about {count_text(size)}"
                for size in (report.examples, report.tokens, report.targets)
            )
            share = 100 * stats.targets / max(stats.tokens, 1)
            yield "tokens", f"{tokens} in {examples} examples, from {source}"
            yield "targets", f"{targets}, {share:.1f} % of the tokens"
        else:
            text = f"{stats.tokens:,} in a sample of {stats.rows:,} rows"
            yield "tokens", f"{text}, of which {stats.targets:,} are targets"
        if lengths := report.lengths:
            yield (
                "lengths",
                f"mean {lengths.mean:,.1f}, median {lengths.median:,}, 95 % up to {lengths.p95:,}, "
                f"longest {lengths.longest:,}",
            )
            yield "", f"1 {bars(lengths.counts, self.plain)} {lengths.longest:,}"
        for label, names in (("left out", _LEFT_OUT), ("cut", _CUT)):
            counts = [
                f"{count:,} {text.format(max_length=f'{max_length:,}')}"
                for name, text in names.items()
                if (count := getattr(stats, name))
            ]
            if counts or label == "left out":
                yield label, f"{', '.join(counts) or 'nothing'} of {stats.rows:,} rows"
        if count := stats.special_as_text:
            yield "names", f"special tokens are named in {count:,} rows, and taken as text"
        if count := stats.repeated_bos:
            share = 100 * count / stats.tokens
            yield "BOS", f"{count:,} before further pieces, {share:.2f} % of the tokens (piece_bos)"

    def _bad_rows(self, report: SourceReport) -> None:
        if report.stops:
            text = "`train` stops at such a row; `on_bad_row: skip` leaves it out, counted"
            self._line("bad rows", text, "red")
        elif report.bad_rows:
            self._line("bad rows", "left out, counted (on_bad_row: skip)")
        for message in report.bad_rows:
            self._line("", message)
        if report.bad_rows and (more := report.stats.bad_rows - len(report.bad_rows)):
            self._line("", f"and {more:,} more")

    def _sample(self, sample: Sample) -> None:
        mark = "in green" if self.coloured else f"in {' '.join(self.brackets)}"
        text = f"{sample.tokens:,} tokens, {sample.targets:,} targets ({mark})"
        self._print(Text(f"  sample    {readable(sample.place)}: {text}", style="dim"))
        parts = map(self._part, shorten(sample.spans, SAMPLE_CHARACTERS))
        rule = "  | " if self.plain else "  │ "
        for line in Text.assemble(*parts).split(
            "\n"
        ):  # Without the blank line behind a last line's end.
            self._print(Text.assemble((rule, "dim"), line))

    def _part(self, span: Span) -> tuple[str, str]:
        text = readable(span.text)
        if span.kind == "note":
            return text, "dim italic"
        if self.coloured:
            return text, "bold green" if span.kind == "target" else ""
        left, right = self.brackets
        return (f"{left}{text}{right}" if span.kind == "target" else text), ""

    def _line(self, label: str, text: str, style: str = "") -> None:
        self._print(Text.assemble((f"  {label:<9} ", "cyan"), (readable(text), style)))

    def _print(self, text: str | Text) -> None:
        self.console.print(text, soft_wrap=True)


def _layout(report: SourceReport) -> str:
    """How many rows, in how many files and chunks."""
    parts = [f"{'' if report.rows_exact else 'about '}{report.rows:,}"] if report.rows else []
    if not parts:
        parts.append("not known without reading all (--rows 0)")
    if report.files is not None and not report.by_row:
        parts.append(f"{report.files:,} {'file' if report.files == 1 else 'files'}")
    if not report.by_row:
        parts.append(f"{report.chunks:,} {'chunk' if report.chunks == 1 else 'chunks'}")
    if report.bytes is not None:
        parts.append(bytes_text(report.bytes))
    return ", ".join(parts)


def _shares(config: DataConfig, mix: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Headers and rows of the table of shares."""
    headers = ["source", "group"]
    for length in mix["stage_lengths"]:
        later = len(mix["stage_lengths"]) > 1
        until = f"for {count_text(length)} {config.mix_by}" if length else "then"
        headers.append(until if later else "share")
    seen = mix["passes"]
    headers += [f"passes in {count_text(mix['steps'])} steps"] if seen else []
    kinds = ["train"] * len(config.train) + ["replay"] * len(config.replay) + ["base"]
    rows: list[list[object]] = []
    for number, name in enumerate(mix["names"]):
        shares: list[object] = [f"{100 * shares[number]:.1f} %" for shares in mix["shares"]]
        row: list[object] = [readable(name), kinds[number], *shares]
        known = seen[number] if seen and number < len(seen) else None
        rows.append([*row, known if known is None else f"{known:.3g}"] if seen else row)
    return headers, rows


def count_text(number: float | None) -> str:
    """A count with three digits or so: `7,473`, `1.21 M`, `20.4 G`."""
    if number is None:
        return "-"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return f"{round(number):,}"


def bytes_text(number: float) -> str:
    """A size: `512 B`, `4.2 MB`."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"
