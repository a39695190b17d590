"""LitData: chunks of tokens, `StreamingDataset` with `TokensLoader` and shuffle, local."""

from functools import partial

import litdata
import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize
from reading import arguments, documents, endless, measure, training_batch


def document(number: int, options: object) -> torch.Tensor:
    """LitData asks for a function input -> tensor; inputs are numbers of groups of documents."""
    return torch.from_numpy(_groups(options)[number])


def _groups(options: object) -> list:
    import numpy as np

    found, group = [], []
    for tokens in documents(options):
        group.append(tokens)
        if len(group) == 1000:
            found.append(np.concatenate(group))
            group = []
    return [*found, np.concatenate(group)] if group else found


def main() -> None:
    options = arguments()
    out = options.work / f"lit-{options.length}"
    if not (out / "index.json").exists():
        optimize(
            fn=partial(document, options=options),
            inputs=list(range(len(_groups(options)))),
            output_dir=str(out),
            chunk_bytes="64MB",
            item_loader=TokensLoader(options.length),
            num_workers=1,
        )
    dataset = StreamingDataset(str(out), item_loader=TokensLoader(options.length), shuffle=True)
    loader = StreamingDataLoader(dataset, batch_size=options.batch, num_workers=0, drop_last=True)
    batches = (training_batch(batch) for batch in endless(loader))
    measure("LitData", options, batches, version=litdata.__version__)


if __name__ == "__main__":
    main()
