"""grain: fixed chunks out of a memory map and out of ArrayRecord; documents packed by best fit."""

import grain
import numpy as np
import torch
from grain.experimental import BestFitPackIterDataset
from reading import arguments, chunks, measure, training_batch

BINS = 128


class Documents:
    """Random access to documents in a memory map."""

    def __init__(self, options: object) -> None:
        self.ids = np.load(options.tokens / "ids.npy", mmap_mode="r")
        self.ends = np.load(options.tokens / "ends.npy")
        self.length = options.length

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start = self.ends[index - 1] if index else 0
        return {"input_ids": self.ids[start : self.ends[index]][: self.length]}


def array_record(options: object) -> object:
    from array_record.python.array_record_module import ArrayRecordWriter

    path = options.work / f"chunks-{options.length}.array_record"
    if not path.exists():
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for row in chunks(options):
            writer.write(row.tobytes())
        writer.close()
    return grain.sources.ArrayRecordDataSource(str(path))


def fixed(source: object, options: object, threads: int, decode: object = None) -> object:
    dataset = grain.MapDataset.source(source).shuffle(seed=0).repeat()
    if decode:
        dataset = dataset.map(decode)
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=500 if threads else 0)
    rows = dataset.batch(options.batch).to_iter_dataset(read)
    return (training_batch(torch.from_numpy(np.asarray(batch))) for batch in rows)


def packed(options: object, threads: int) -> object:
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=500 if threads else 0)
    rows = grain.MapDataset.source(Documents(options)).shuffle(seed=0).repeat()
    rows = rows.to_iter_dataset(read)
    rows = BestFitPackIterDataset(
        rows, length_struct={"input_ids": options.length}, num_packing_bins=BINS
    ).batch(options.batch)
    for batch in rows:
        # The parts' numbers (0 = padding) and positions are made by the packer, too.
        real = torch.from_numpy(batch["input_ids_segment_ids"]) > 0
        ids = torch.from_numpy(batch["input_ids"]).long()
        yield {
            "input_ids": ids,
            "labels": torch.where(real, ids, -100),
            "position_ids": torch.from_numpy(batch["input_ids_positions"]).long(),
            "real": real,
        }


def main() -> None:
    options = arguments()
    record = array_record(options)
    ways = {"memory map": (chunks(options), None)}
    ways["ArrayRecord"] = (record, lambda data: np.frombuffer(data, np.int32))
    for name, (source, decode) in ways.items():
        for threads in (0, 16):
            batches = fixed(source, options, threads, decode)
            measure(
                f"grain, {name}, {threads} threads", options, batches, version=grain.__version__
            )
    for threads in (0, 16):
        measure(
            f"grain, best fit, {threads} threads",
            options,
            packed(options, threads),
            tokens=lambda batch: int(batch["real"].sum()),
            version=grain.__version__,
        )


if __name__ == "__main__":
    main()
