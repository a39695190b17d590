"""grain's packing of the documents in `--tokens`: how full its slots are, and tokens per second.

Called by `data_packing.py` in grain's own environment; prints one JSON object for each method.
"""

import argparse
import json
import time
from pathlib import Path

import grain
import numpy as np
from grain.experimental import (
    BestFitPackIterDataset,
    ConcatThenSplitIterDataset,
    FirstFitPackIterDataset,
)


class Documents:
    """Random access to documents, all of them in memory."""

    def __init__(self, folder: Path) -> None:
        ids, ends = np.load(folder / "ids.npy"), np.load(folder / "ends.npy")
        self.documents = np.split(ids, ends[:-1])

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.documents[index]}


def measure(name: str, packed: object, length: int) -> None:
    """Packed until the end; a slot's documents are told by its segment ids, 0 = unused."""
    slots = tokens = 0
    start = time.process_time()
    for slot in packed:
        slots += 1
        tokens += np.count_nonzero(slot["input_ids_segment_ids"])
    seconds = time.process_time() - start
    result = {"name": name, "slots": slots, "tokens": int(tokens), "seconds": seconds}
    print(json.dumps({**result, "fill": float(tokens) / (slots * length)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--length", type=int, required=True)
    options = parser.parse_args()
    source = grain.MapDataset.source(Documents(options.tokens))
    one_thread = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    struct = {"input_ids": options.length}
    for bins in (32, 64, 128, 512):
        for name, kind in (
            ("best fit", BestFitPackIterDataset),
            ("first fit", FirstFitPackIterDataset),
        ):
            rows = source.to_iter_dataset(one_thread)
            packed = kind(rows, length_struct=struct, num_packing_bins=bins)
            measure(f"grain {name}, {bins} bins", packed, options.length)
    rows = source.to_iter_dataset(one_thread)
    measure("grain concat", ConcatThenSplitIterDataset(rows, length_struct=struct), options.length)


if __name__ == "__main__":
    main()
