"""No library: rows of a memory map in a permuted order. What reading can cost at least."""

from collections.abc import Iterator

import numpy as np
import torch
from reading import arguments, chunks, measure, training_batch


def read(options: object) -> Iterator[dict[str, torch.Tensor]]:
    rows = chunks(options)
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(len(rows))
        for start in range(0, len(order) - options.batch + 1, options.batch):
            yield training_batch(torch.from_numpy(rows[order[start : start + options.batch]]))


def main() -> None:
    options = arguments()
    measure("numpy memory map", options, read(options), version=np.__version__)


if __name__ == "__main__":
    main()
