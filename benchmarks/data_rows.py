"""What the benchmarks of the data engine share: real rows, files of any size, and measuring.

    python benchmarks/data_rows.py --data ../shared/data --rows 20000 --output rows.jsonl

Large files are made of real rows (GSM8K, Dolly, Codegen, Chinese questions), repeated with other
numbers in them, so that no two rows are equal.
"""

import argparse
import gzip
import json
import os
import platform
import random
import re
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

LONGEST = 640
"""Bytes of the longest row that large files are made of."""

LINES_AT_ONCE = 100_000

SFT_FILES = (
    "sft/gsm8k/train.jsonl.gz",
    "sft/dolly2k/dolly_train.json.gz",
    "sft/gpteacher_codegen/codegen-instruct.json.gz",
    "sft/chat_dataset_zh_extra/code_qa_zh.json.gz",
    "sft/chat_dataset_zh_extra/terms_zh.json",
)
TEXT_FILES = (
    "text/wikitext2_valid_test/valid.txt",
    "text/wikitext2_valid_test/test.txt",
    "text/tinyshakespeare/input.txt",
    "text/tinystories_excerpt/tinystories.txt",
)


def real_rows(data: Path) -> list[dict[str, str]]:
    """All real question-and-answer rows as `{prompt, completion}`, in a fixed shuffled order."""
    rows = []
    for name in SFT_FILES:
        path = data / name
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode()
        parsed = json.loads(text) if text.startswith("[") else map(json.loads, text.splitlines())
        rows += [pair for row in parsed if (pair := _pair(row))]
    random.Random(0).shuffle(rows)
    return rows


def _pair(row: dict[str, Any]) -> dict[str, str] | None:
    question = row.get("question") or "\n".join(
        part for part in (row.get("instruction"), row.get("input")) if part
    )
    answer = row.get("answer") or row.get("output") or row.get("response")
    if not question.strip() or not str(answer or "").strip():
        return None
    return {"prompt": question, "completion": str(answer)}


def real_texts(data: Path) -> list[dict[str, str]]:
    """Documents of plain text: the files' paragraphs, joined to some 2,000 characters each."""
    documents, current = [], ""
    for name in TEXT_FILES:
        for paragraph in re.split(r"\n\s*\n|\n (?== )", (data / name).read_text("utf-8")):
            current += paragraph + "\n"
            if len(current) > 2000:
                documents.append({"text": current})
                current = ""
    random.Random(0).shuffle(documents)
    return documents


def lines(rows: Sequence[dict[str, str]], count: int) -> Iterator[bytes]:
    """`count` different JSON lines made of real rows, some at a time."""
    # One row of each wording: numbers alone would not always tell two of them apart.
    templates = list(dict(map(_template, rows)).items())
    made: list[bytes] = []
    for number in range(count):
        template, values = templates[number % len(templates)]
        turn = number // len(templates)
        made.append(template % tuple([value + turn for value in values]))
        if len(made) == LINES_AT_ONCE:
            yield b"".join(made)
            made = []
    if made:
        yield b"".join(made)


def _template(row: dict[str, str]) -> tuple[bytes, list[int]]:
    """A row as a JSON line with `%d` for its numbers, and the numbers."""
    first = next(iter(row))
    if not any(re.search(r"[0-9]", value) for value in row.values()):
        row = {**row, first: row[first] + " (0)"}
    text = json.dumps(row, ensure_ascii=False).replace("%", "%%")
    numbers = [int(value) for value in re.findall(r"[0-9]{1,9}", text)]
    return re.sub(r"[0-9]{1,9}", "%d", text).encode() + b"\n", numbers


def short_rows(data: Path) -> list[dict[str, str]]:
    """The real rows that large files are made of."""
    rows = real_rows(data)
    return [row for row in rows if len(json.dumps(row, ensure_ascii=False).encode()) <= LONGEST]


def write_jsonl(rows: Sequence[dict[str, str]], path: Path, count: int) -> Path:
    with path.open("wb") as file:
        for chunk in lines(rows, count):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return path


def write_parquet(rows: Sequence[dict[str, str]], path: Path, count: int, group_rows: int) -> Path:
    """The same rows as Parquet (snappy), `group_rows` rows in each row group."""
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet as pq

    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
    pending: list[pa.Table] = []
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in lines(rows, count):
            table = pa.json.read_json(pa.BufferReader(chunk))
            pending.append(table.cast(schema))
            if sum(map(len, pending)) >= group_rows:
                writer.write_table(pa.concat_tables(pending), row_group_size=group_rows)
                pending = []
        if pending:
            writer.write_table(pa.concat_tables(pending), row_group_size=group_rows)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def evict(path: Path) -> None:
    """Let the system forget the file's pages, so that the next reader waits for the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory(name: str = "VmRSS") -> float:
    """MiB of this process now (`VmRSS`), at most so far (`VmHWM`), or of its heap (`RssAnon`)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def reset_peak() -> None:
    """Let `VmHWM` begin anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "lowest": min(values),
        "highest": max(values),
        "repetitions": len(values),
    }


def shown(values: Sequence[float], digits: int = 2) -> str:
    """`median (lowest to highest)`."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    versions = {}
    for package in ("torch", "transformers", "tokenizers", "pyarrow", "datasets", "trl"):
        versions[package] = _version(package)
    return {
        "commit": commit,
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def work_folder(given: Path | None) -> AbstractContextManager[str | Path]:
    """The folder given, or a temporary one that goes away at the end."""
    if given is None:
        return tempfile.TemporaryDirectory()
    given.mkdir(parents=True, exist_ok=True)
    return nullcontext(given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--group_rows", type=int, default=100_000)
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl or .parquet file")
    options = parser.parse_args()
    rows = short_rows(options.data)
    if options.output.suffix == ".parquet":
        write_parquet(rows, options.output, options.rows, options.group_rows)
    else:
        write_jsonl(rows, options.output, options.rows)
    print(f"{options.output}: {options.output.stat().st_size / 2**20:,.1f} MiB")


if __name__ == "__main__":
    main()
