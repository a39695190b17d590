"""Whole-source passes and their cache: rows -> a `TokenStore` on disk, addressed by its content.

```
postprocess   a hook over all rows                  |
deduplicate   the first of rows that become equal   | ask for a pass;
sample_rows   so many rows, chosen by hash          | otherwise only `controlllm data prepare` makes one
difficulty    easy first, in phases of equal mass   |
```
A folder is named by all that its content depends on: the rows, their time stamps, the tokenizer, the
template, every option and the code. So nothing stale is ever served, and whoever finds a folder
whole may use it.
"""

import os
from collections.abc import Iterable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from controlllm.common.distributed import Ranks
from controlllm.common.files import atomic_folder
from controlllm.common.lock import make_once
from controlllm.data.config import SourceConfig
from controlllm.data.encode import RowEncoder, encode_rows
from controlllm.data.identity import code_key, options_key
from controlllm.data.postprocess import hooked_rows, share_hooked_rows
from controlllm.data.select import Selection
from controlllm.data.sources import Blocks, Located
from controlllm.data.store import META, StoreWriter, TokenStore

__all__ = ["needs_pass", "prepare_source", "prepared_store", "store_folder"]


def needs_pass(source: SourceConfig) -> bool:
    """Whether a source cannot be drawn from before all of it was read once."""
    return bool(source.postprocess or source.deduplicate or source.difficulty or source.sample_rows)


def store_folder(encoder: RowEncoder, blocks: Blocks) -> Path:
    """Where the prepared tokens of a source lie, whether they are there or not."""
    parts = (blocks.fingerprint, blocks.stamp, options_key(encoder), code_key(encoder.source))
    key = blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
    root = encoder.config.cache_dir or os.environ.get("CONTROLLLM_CACHE") or "~/.cache/controlllm"
    return Path(root).expanduser() / "data" / f"{encoder.source.name}-{key}"


def prepared_store(encoder: RowEncoder, blocks: Blocks) -> TokenStore | None:
    """The prepared tokens of a source, if somebody has prepared exactly them.

    Raises:
        DataError: they are damaged.
    """
    folder = store_folder(encoder, blocks)
    return TokenStore.open(str(encoder.source.name), folder) if _is_whole(folder) else None


def prepare_source(
    encoder: RowEncoder, blocks: Blocks, model: Any = None, ranks: Ranks | None = None
) -> TokenStore:
    """Read, choose and tokenize a whole source, once; of several processes one does the work.

    Args:
        encoder: how rows become examples.
        blocks: the rows.
        model: for a `postprocess` hook that asks for it.
        ranks: the processes that share a `postprocess` hook's work.

    Raises:
        DataError: a row cannot be used, nothing is left, or another process did not finish.
    """
    folder = store_folder(encoder, blocks)
    encoder = encoder.fresh()
    is_whole = partial(_is_whole, folder)
    rows: Iterable[Located] = blocks.rows()
    if encoder.source.postprocess and not is_whole():
        share = share_hooked_rows(encoder, rows, folder, model, ranks or Ranks())
        rows = share if share is not None else hooked_rows(encoder, rows, model)
    make_once(
        folder, is_whole, partial(_write, encoder, rows, folder), encoder.config.cache_timeout
    )
    return TokenStore.open(str(encoder.source.name), folder)


def _is_whole(folder: Path) -> bool:
    return (folder / META).is_file()


def _write(encoder: RowEncoder, rows: Iterable[Located], folder: Path) -> None:
    """The pass: every row to examples, then what the source chooses among them."""
    selection, chosen = Selection(encoder.source), bool(encoder.source.postprocess)
    with atomic_folder(folder, overwrite=True) as temporary:
        with StoreWriter(temporary, len(encoder.renderer.tokenizer)) as writer:
            for (place, row), examples in encode_rows(encoder, rows, chosen):
                with encoder.accounting(place):
                    if examples:
                        selection.add(row, examples)
                    for example in examples:
                        writer.write(example)
        writer.finish(encoder.stats, *selection.choose(encoder.stats))
        TokenStore.open(str(encoder.source.name), temporary)  # Refuses a store without examples.
