"""The checks for a machine with a GPU: `benchmarks/gpu/check.sh` calls this.

Each part runs in a process of its own, until its limit or that of the whole; its rows are kept as
they come, so what dies, hangs or does not fit loses nothing else. After each part the record is
written anew: gpu-check.json (all numbers), gpu-check.md (tables), gpu-check.log (what was printed).
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.goals import judged

__all__ = ["PARTS", "Part", "main"]


@dataclass(frozen=True)
class Part:
    """One part of the checks."""

    module: str  # in this folder; its `run` gives rows
    least: float  # seconds below which it is not worth a start
    share: float  # of all seconds, after which it is ended


PARTS = {
    "tests": Part("marked", 40, 0.25),
    "step": Part("step", 40, 0.40),
    "decode": Part("decoding", 30, 0.13),
    "loss": Part("losses", 25, 0.09),
    "resume": Part("resuming", 25, 0.11),
}
"""By name, in the order in which they run."""

RESERVE = 5.0
"""Seconds kept for the record."""


def main(words: list[str] | None = None) -> int:
    """Run the parts, or the one that another process of this asks for.

    Returns:
        0 where all parts came to their end and no goal failed, else 1.
    """
    options = parsed(words)
    options.device = "cpu" if options.dry else "cuda"
    if options.dry:
        options.size = "dry"
    if options.part is not None:
        run_part(options)
        return 0
    return run_all(options)


def parsed(words: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/check.sh")
    parser.add_argument("--dry", action="store_true", help="everything, tiny, on this CPU")
    parser.add_argument("--size", choices=("0.5B", "1B", "1.5B"), default="1B", help="the model")
    parser.add_argument("--seconds", type=float, default=480, help="of everything together")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these; default: all"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks-output"),
        help="folder of the record; default: %(default)s; a relative one is in the checkout",
    )  # fmt: skip
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def run_part(options: argparse.Namespace) -> None:
    """One part, in this process; its rows go to a file as they come."""
    with options.rows.open("a") as file:

        def emit(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        part = importlib.import_module(f"benchmarks.gpu.{PARTS[options.part].module}")
        part.run(options, emit)


def run_all(options: argparse.Namespace) -> int:
    """All parts, each in its process and its time."""
    begin = time.monotonic()
    record: dict[str, Any] = {"command": sys.argv, "dry": options.dry, "size": options.size}
    record |= {"parts": {}, "rows": {}, "machine": described()}
    if not options.dry and "gpu" not in record["machine"]:
        why = record["machine"].get("note", "--dry runs everything, tiny, on this CPU.")
        raise SystemExit(f"torch sees no GPU here; {why}")
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "gpu-check.log").open("w") as log:
        for name in options.parts:
            part, left = PARTS[name], options.seconds - RESERVE - (time.monotonic() - begin)
            if left < part.least:
                said = f"skipped: {left:.0f} s are left, and it needs {part.least:.0f}"
                record["parts"][name] = {"ended": said, "seconds": 0.0}
            else:
                limit = min(part.share * options.seconds, left)
                record["parts"][name], record["rows"][name] = in_time(name, options, limit, log)
            record["goals"] = judged(record["rows"], options.dry)
            record["seconds"] = time.monotonic() - begin
            write(options.output, record)
            print(f"{name}: {record['parts'][name]['ended']}", flush=True)
    print(f"\n{tables(record)}\n\nwritten to {options.output.resolve()}")
    well = all(part["ended"] == "done" for part in record["parts"].values())
    return 0 if well and all(one["verdict"] != "FAIL" for one in record["goals"]) else 1


def in_time(
    name: str, options: argparse.Namespace, limit: float, log: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How a part ended and how long it took, and its rows."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        words = ["--part", name, "--rows", str(rows), "--size", options.size]
        command = [sys.executable, "-m", "benchmarks.gpu.check", *words]
        if options.dry:
            command = [*command[:-2], "--dry"]
        log.write(f"== {name}\n")
        log.flush()
        # A session of its own, so that what it started ends with it.
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(limit)
            ended = "done" if code == 0 else f"failed with exit code {code}; see gpu-check.log"
        except subprocess.TimeoutExpired:
            ended = f"ended by its limit of {limit:.0f} s; its rows so far are kept"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return {"ended": ended, "seconds": time.monotonic() - begin}, whole_rows(rows)


def whole_rows(file: Path) -> list[dict[str, Any]]:
    """What a part wrote; the last line may have been cut off."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def described() -> dict[str, Any]:
    """What it is measured on, asked in a process of its own: this one holds nothing of the GPU."""
    code = "import json; from benchmarks.gpu.device import about; print(json.dumps(about()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1]
        return {"note": f"{sys.executable}: {why} (PYTHON=... names another)"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write(folder: Path, record: dict[str, Any]) -> None:
    """The record, for programs and for people."""
    (folder / "gpu-check.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "gpu-check.md").write_text(tables(record) + "\n")


def tables(record: dict[str, Any]) -> str:
    """A table of each part's rows, of how the parts ended, and of the goals."""
    from controlllm.common.text.tables import format_table

    def table(rows: list[dict[str, Any]]) -> str:
        names = list(dict.fromkeys(name for row in rows for name in row))
        return format_table(names, [[row.get(name) for name in names] for row in rows])

    said = "A dry run: the numbers say nothing.\n\n" if record["dry"] else ""
    parts = [{"part": name, **one} for name, one in record["parts"].items()]
    blocks = [f"## {name}\n\n{table(rows)}" for name, rows in record["rows"].items() if rows]
    blocks += [f"## parts\n\n{table(parts)}"]
    if record["goals"]:
        blocks += [f"## goals\n\n{table(record['goals'])}"]
    return said + "\n\n".join(blocks)


if __name__ == "__main__":
    sys.exit(main())
