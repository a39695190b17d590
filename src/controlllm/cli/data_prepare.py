"""`controlllm data prepare`: every source of a run is tokenized once, into the cache."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controlllm.cli.data import groups, load_run_tokenizer
from controlllm.cli.train import parse_run
from controlllm.common.storage.files import folder_bytes
from controlllm.common.text.progress import progress
from controlllm.common.text.readable import readable
from controlllm.data import SourceConfig
from controlllm.train.config.run_config import RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PrepareData", "run"]

TRAINING = ("train", "replay")
"""Groups that are read as training reads them."""


@dataclass
class PrepareData(RunConfig):
    """Tokenize every source of a run once, into the cache; `train` and `eval` then read the tokens.

    Takes the run file that `train` takes, and every setting of it. No model is loaded.
    """


def run(argv: list[str]) -> None:
    """Prepare one source after the other, and print what became of each."""
    options = parse_run(PrepareData, argv, "data prepare")
    sources = list(groups(options))
    tokenizer = load_run_tokenizer(options)
    for group, source in sources:
        print(readable(_prepare(options, group, source, tokenizer)), flush=True)


def _prepare(
    options: PrepareData, group: str, source: SourceConfig, tokenizer: "PreTrainedTokenizerBase"
) -> str:
    """Prepare a source as its group is going to read it; a few lines for people."""
    from controlllm.cli.data_show import bytes_text
    from controlllm.data.cache.prepare import prepare_source, prepared_store, store_folder
    from controlllm.data.examples.encode import RowEncoder
    from controlllm.data.inspect.source import count_rows
    from controlllm.data.loader.open_source import open_source
    from controlllm.data.loader.packing import slot_store

    chunks = open_source(source, options.data)
    # As `train` makes them: held-out sets count the targets of `train_on` alone.
    encoder = RowEncoder(source, tokenizer, options.data, training=group in TRAINING)
    folder = store_folder(encoder, chunks)
    store, took = prepared_store(encoder, chunks), "was there already"
    if store is None:
        started = time.monotonic()
        with progress(f"preparing {source.name}", "rows", count_rows(chunks)) as line:
            store = prepare_source(encoder, chunks)
        what = "prepared in" if line.done else "another process prepared it; waited"
        took = f"{what} {time.monotonic() - started:.1f} s"
    size = bytes_text(folder_bytes(folder))
    lines = [f"{group} {source.name}: {took}, {size}", store.stats.describe(), str(folder)]
    if group in TRAINING and options.data.has_fixed_slots:
        slots = slot_store(store, options.data)
        filled = slots.tokens / (len(slots) * options.data.max_length)
        lines += [f"{len(slots):,} slots, {filled:.2%} filled", str(slots.folder)]
    return "\n  ".join(lines)
