"""What grain needs before its first row of raw JSON lines: an index of line offsets.

    PEERS/grain/bin/python benchmarks/peers/grain_start.py rows-1000000.jsonl ...

grain's `MapDataset` needs random access; JSON lines have none until somebody has read the whole
file once. Each file is evicted from the system's memory first. Prints one JSON object for each.
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import grain
import numpy as np


class Lines:
    """Random access to the rows of a JSON lines file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        found = []
        position = 0
        while data := self.file.read(16 * 2**20):
            newline = np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
            found.append(newline + position + 1)
            position += len(data)
        self.ends = np.concatenate(found)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = int(self.ends[index - 1]) if index else 0
        self.file.seek(start)
        row: dict[str, Any] = json.loads(self.file.read(int(self.ends[index]) - start))
        return row


def resident() -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def evict(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        evict(path)
        before, started = resident(), time.perf_counter()
        source = Lines(path)
        indexed = time.perf_counter() - started
        dataset = grain.MapDataset.source(source).shuffle(seed=0).repeat()
        rows = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0)))
        next(rows)
        first = time.perf_counter() - started
        for _ in range(1024):
            next(rows)
        record = {
            "rows": len(source),
            "index_s": indexed,
            "first_row_s": first,
            "rows_1024_s": time.perf_counter() - started - first,
            "added_mib": resident() - before,
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
