"""What a stranger who can compute the name of a cache folder, or who makes a data file, may do."""

import gzip
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["BOMBS", "Trap", "read_bombs"]

LARGE = 64 * 2**20
"""What the bombs become, in bytes or more."""

MAX_ROW_BYTES = 2**18
ROW = "x" * (MAX_ROW_BYTES - 100)


class Trap:
    """A pickle that makes a folder, `proof`, when it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.proof),)


def _zeros() -> Any:
    """Bytes that the system makes when they are looked at."""
    offsets = pa.py_buffer(np.array([0, LARGE], dtype=np.int64))
    data = pa.py_buffer(np.zeros(LARGE, dtype=np.uint8))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def _list_of(values: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def _many_times_one() -> Any:
    """One text of 256 KiB, meant 256 times."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(256, np.int32)), pa.array([ROW]))


def _ipc(column: Any, stream: bool = False, codec: str | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        table = pa.table({"text": column()})
        options = pa.ipc.IpcWriteOptions(compression=codec)
        new = pa.ipc.new_stream if stream else pa.ipc.new_file
        with new(str(path), table.schema, options=options) as writer:
            writer.write_table(table)

    return write


def _parquet(column: Any, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pq.write_table(pa.table({"text": column()}), path, compression="zstd", **options)

    return write


def _gzip(begin: bytes, middle: bytes, end: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with gzip.open(path, "wb", 1) as file:
            file.write(begin)
            for _ in range(LARGE // len(middle)):
                file.write(middle)
            file.write(end)

    return write


def _number(value: int) -> bytes:
    """As Avro writes it."""
    value, found = value * 2, b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def _avro(
    schema: Any, record: Callable[[], Iterator[bytes]], codec: str = "null"
) -> Callable[[Path], None]:
    """An Avro file of one block with one record."""

    def write(path: Path) -> None:
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        pack = packer.compress if codec == "deflate" else bytes
        block = b"".join(map(pack, record())) + (packer.flush() if codec == "deflate" else b"")
        head = {"avro.schema": json.dumps(schema).encode(), "avro.codec": codec.encode()}
        with path.open("wb") as file:
            file.write(b"Obj\x01" + _number(len(head)))
            for key, value in head.items():
                file.write(_number(len(key)) + key.encode() + _number(len(value)) + value)
            file.write(b"\0" + b"m" * 16 + _number(1) + _number(len(block)) + block + b"m" * 16)

    return write


def _record(kind: Any) -> Any:
    return {"type": "record", "name": "Row", "fields": [{"name": "text", "type": kind}]}


def _text_of_zeros() -> Iterator[bytes]:
    yield _number(LARGE)
    for _ in range(LARGE // 2**20):
        yield bytes(2**20)


BOMBS: dict[str, tuple[Callable[[Path], None], str]] = {
    "rows.json.gz": (_gzip(b'[{"text": "', b" " * 2**20, b'"}]'), "more bytes than `max_row"),
    "object.json.gz": (_gzip(b'{"data": [{"text": "', b" " * 2**20, b'"}]}'), "more bytes than"),
    "spaces.json.gz": (_gzip(b'[{"text": "a"}', b" " * 2**20, b"]"), "{'text': 'a'}"),
    "line.jsonl.gz": (_gzip(b'{"text": "', b" " * 2**20, b'"}'), "`max_row_bytes` is"),
    "line.csv.gz": (_gzip(b'text\n"', b" " * 2**20, b'"\n'), "a row of more than"),
    "lists.jsonl": (lambda path: path.write_bytes(b"[" * 10**5) and None, "nested too deeply"),
    "zeros.avro": (_avro(_record("string"), _text_of_zeros, "deflate"), "would unpack to"),
    "nothing.avro": (
        _avro(_record({"type": "array", "items": "null"}), lambda: iter([_number(10**8), b"\0"])),
        "lists of elements without any bytes",
    ),
    "within.avro": (
        _avro(_record(["null", "Row"]), lambda: iter([b"\x02" * 10**6, b"\0"])),
        "its type 'Row' is a part of itself",
    ),
    "zeros.feather": (_ipc(_zeros, codec="zstd"), "would unpack to"),
    "zeros.arrow": (_ipc(_zeros, stream=True, codec="zstd"), "would unpack to"),
    "nulls.feather": (_ipc(lambda: _list_of(pa.nulls(10**8))), "`max_row_bytes` is"),
    "fixed.feather": (
        _ipc(lambda: pa.FixedSizeListArray.from_arrays(pa.nulls(10**8), 10**8)),
        "`max_row_bytes` is",
    ),
    "again.feather": (_ipc(lambda: _list_of(_many_times_one()), codec="zstd"), "`max_row_bytes`"),
    "zeros.parquet": (
        _parquet(_zeros, use_dictionary=False, write_statistics=False),
        "would unpack to",
    ),
    "list.parquet": (
        _parquet(lambda: _list_of(pa.array(np.zeros(10**7, dtype=np.int8)))),
        "its lists in one row group would unpack to",
    ),
    "again.parquet": (
        _parquet(lambda: pa.chunked_array([[ROW]] * 256)), "{'text': 'xxx"
    ),
}  # fmt: skip
"""Name of a small file -> how it is made, and what its first row says, or the error."""

_READ = """
import resource, sys
from pathlib import Path
import pyarrow.compute, pyarrow.parquet, fastavro
from controlllm.common.errors import DataError
from controlllm.data import SourceConfig
from controlllm.data.sources import open_chunks, opening

def peak():
    # Of this program alone: what `getrusage` tells begins with its parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))

resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
before = peak()
# Small files are read at once, large ones row by row.
for path, opening.SMALL_BYTES in [(path, size) for path in sys.argv[2:] for size in (2**23, -1)]:
    try:
        blocks = open_chunks(SourceConfig(path, max_row_bytes=int(sys.argv[1])))
        told = next(str(row) for _, row in blocks.rows())
        for _ in blocks.rows():
            pass
    except DataError as error:
        told = str(error)
    print(Path(path).name, peak() - before, told[:200].replace(chr(10), " "), sep="\\t", flush=True)
"""


def read_bombs(paths: list[Path]) -> list[tuple[str, int, str]]:
    """Read files in a fresh process: (name, MiB that it has grown by so far, what was told)."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(MAX_ROW_BYTES), *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = [line.split("\t") for line in done.stdout.splitlines()]
    return [(name, int(grown), told) for name, grown, told in found]
