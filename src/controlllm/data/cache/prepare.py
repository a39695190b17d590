"""Whole-source passes and their cache: rows -> a `TokenStore` on disk, addressed by its content.

```
postprocess   a hook over all rows                  |
deduplicate   the first of rows that become equal   | ask for a pass; of other sources only
sample_rows   so many rows, chosen by hash          | `controlllm data prepare` makes one
difficulty    easy first, in phases of equal mass   |
```
A folder is named by all that its content depends on: the rows, their time stamps, the tokenizer,
the template, every option, the code, and the model where a hook uses it. So nothing stale is ever
served, and a folder that is whole may be used by any run.

Ranks that share the work of a hook make a store of their share each, beside that folder; rank 0
joins them. So they need a shared disk.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from controlllm.common.distributed import Ranks
from controlllm.common.errors import CheckpointError, ControlLLMError, DataError
from controlllm.common.storage.files import atomic_folder
from controlllm.common.storage.lock import cache_root, make_once, own_folder
from controlllm.common.text.progress import tick
from controlllm.data.cache.cache_key import code_key, model_key, options_key
from controlllm.data.cache.store import META, StoreWriter, TokenStore
from controlllm.data.cache.whole_source import Selection
from controlllm.data.config.hooks import POSTPROCESS, PostprocessContext
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import RowEncoder, encode_rows
from controlllm.data.sources import Chunks, Located
from controlllm.data.sources.files import digest

__all__ = ["hooked_rows", "needs_pass", "prepare_source", "prepared_store", "store_folder"]


def needs_pass(source: SourceConfig) -> bool:
    """Whether a source cannot be drawn from before all of it was read once."""
    return bool(source.postprocess or source.deduplicate or source.difficulty or source.sample_rows)


def store_folder(encoder: RowEncoder, chunks: Chunks, model: Any = None) -> Path:
    """Where the prepared tokens of a source lie, whether they are there or not.

    The model counts only where the hook of the source uses it.
    """
    source = encoder.source
    parts = [chunks.fingerprint, chunks.stamp, options_key(encoder), code_key(source)]
    if source.postprocess and POSTPROCESS.get(source.postprocess).uses_model:
        parts.append("none" if model is None else model_key(model))
    root = encoder.config.cache_dir or cache_root()
    # The name is for people; whatever cannot stand in a file's name is left out of it.
    name = re.sub(r"[^\w.-]+", "_", str(source.name)).strip(".")[:64]
    return Path(root).expanduser() / "data" / f"{name}-{digest(*parts)}"


def prepared_store(encoder: RowEncoder, chunks: Chunks) -> TokenStore | None:
    """The prepared tokens of a source, if somebody has prepared exactly them.

    Raises:
        ConfigError: the cache folder belongs to another user, or others may write to it.
        DataError: they are damaged.
    """
    folder = store_folder(encoder, chunks)
    return _open(encoder.source, folder) if _is_whole(folder) else None


def prepare_source(
    encoder: RowEncoder, chunks: Chunks, model: Any = None, ranks: Ranks | None = None
) -> TokenStore:
    """Read, choose and tokenize a whole source, once; of several processes one does the work.

    Collective where ranks share the work of a `postprocess` hook.

    Raises:
        DataError: a row cannot be used, nothing is left, or another process did not finish.
    """
    work = _Pass(encoder.fresh(), chunks, store_folder(encoder, chunks, model), model)
    hook = encoder.source.postprocess
    if ranks is not None and ranks.world_size > 1 and hook and POSTPROCESS.get(hook).sharded:
        _make_together(work, ranks)
    else:
        work.once(lambda: work.write(work.folder, work.encode))
    return _open(encoder.source, work.folder)


def hooked_rows(encoder: RowEncoder, rows: Iterable[Located], model: Any) -> Iterator[Located]:
    """The rows that the source's hook makes of those that take part.

    Raises:
        DataError: the hook fails, or a row cannot be used.
    """
    name = str(encoder.source.postprocess)
    context = PostprocessContext(encoder.source, encoder.renderer.tokenizer, model)
    taken = made = 0

    def given() -> Iterator[Any]:
        nonlocal taken
        for _, row in encoder.choose(rows):
            taken += 1
            yield row

    try:
        for row in POSTPROCESS.get(name).function(given(), context):
            yield f"row {made} of postprocess {name!r}", row
            made += 1
    except ControlLLMError:
        raise
    # Whatever a user's own function raises; nothing after it can be trusted.
    except Exception as error:
        raise DataError(
            f"source {encoder.source.name!r}: the postprocess hook {name!r} fails after {made} "
            f"rows: {error!r}."
        ) from error
    encoder.stats.filtered += max(taken - made, 0)


Fill: TypeAlias = Callable[[StoreWriter, Selection], None]


@dataclass(frozen=True)
class _Pass:
    """One pass over a source, into a folder."""

    encoder: RowEncoder
    chunks: Chunks
    folder: Path
    model: Any

    @property
    def parts(self) -> Path:
        """Where ranks put what the hook made of their shares."""
        return self.folder.with_name(f"{self.folder.name}.parts")

    def once(self, make: Callable[[], None]) -> None:
        """Make the folder, unless another process has made it or makes it now."""
        _require_own(self.folder)
        timeout = self.encoder.config.cache_timeout
        make_once(self.folder, lambda: _is_whole(self.folder), make, timeout)

    def make_parts(self) -> None:
        """An empty folder for what the ranks make; what a run that was killed left is removed."""
        shutil.rmtree(self.parts, ignore_errors=True)
        try:
            self.parts.mkdir(0o700)
        except OSError as error:
            raise DataError(
                f"the folder {self.parts} cannot be made ({error}); free the name, or choose "
                "another `data.cache_dir`."
            ) from error

    def share(self, ranks: Ranks) -> None:
        """The pass over this rank's share of the rows, into a part; fails on all ranks or none."""

        def fill(writer: StoreWriter, selection: Selection) -> None:
            self.encode(writer, selection, ranks.rank, ranks.world_size)
            selection.save(writer.folder)

        error: Exception | None = None
        try:
            self.write(self.parts / str(ranks.rank), fill, is_part=True)
        except Exception as failure:  # Told to all ranks, so that none waits for this one.
            error = failure
        ranks.agree(error)
        for other, stats in enumerate(ranks.gather(self.encoder.stats)):
            if other != ranks.rank:
                self.encoder.stats.add(stats)

    def join(self, count: int) -> None:
        """The parts of so many ranks -> the folder."""

        def fill(writer: StoreWriter, selection: Selection) -> None:
            for rank in range(count):
                part = self.parts / str(rank)
                if not _is_whole(part):
                    raise DataError(
                        f"rank {rank} wrote {part}, but this rank does not see it; put "
                        "`cache_dir` on a disk that all ranks share."
                    )
                if selection.load(part):
                    store = TokenStore.open(str(self.encoder.source.name), part)
                    writer.write_all(map(store.__getitem__, range(len(store))))

        self.write(self.folder, fill)
        shutil.rmtree(self.parts, ignore_errors=True)

    def write(self, folder: Path, fill: Fill, is_part: bool = False) -> None:
        """Examples into a folder, then what the source chooses among them (of a part: all)."""
        encoder, selection = self.encoder, Selection(self.encoder.source)
        try:
            with atomic_folder(folder, overwrite=True) as temporary:
                with StoreWriter(temporary, len(encoder.renderer.tokenizer)) as writer:
                    fill(writer, selection)
                if is_part:
                    writer.finish(encoder.stats)
                elif writer.lengths:
                    writer.finish(encoder.stats, *selection.choose(encoder.stats))
                else:
                    raise DataError(encoder.why_empty())
        except CheckpointError as error:
            raise DataError(f"source {encoder.source.name!r}: {error}") from error

    def encode(
        self, writer: StoreWriter, selection: Selection, first: int = 0, step: int = 1
    ) -> None:
        """Every row, or each `step`-th from the `first` on, to examples."""
        encoder, chosen = self.encoder, bool(self.encoder.source.postprocess)
        rows: Iterable[Located] = islice(self.chunks.rows(), first, None, step)
        if chosen:
            rows = hooked_rows(encoder, rows, self.model)
        for (place, row), examples in encode_rows(encoder, rows, chosen):
            tick()
            with encoder.accounting(place):
                if examples:
                    selection.add(row, examples)
                writer.write_all(examples)


def _make_together(work: _Pass, ranks: Ranks) -> None:
    """Rank 0 holds the lock and writes; the others wait for its word, then do their shares.

    Every path goes through the same agreements: the first says whether there is work to share, the
    last that it was done.
    """
    if ranks.rank:
        if not ranks.agree(None):
            work.share(ranks)
        ranks.agree(None)
        return
    began = False
    error: Exception | None = None

    def make() -> None:
        nonlocal began
        began = True
        work.make_parts()
        ranks.agree(None)
        work.share(ranks)
        work.join(ranks.world_size)

    try:
        work.once(make)
    except Exception as failure:  # Told to all ranks, so that none waits for this one.
        error = failure
        shutil.rmtree(work.parts, ignore_errors=True)
    if not began:
        ranks.agree(error, ended=True)
    ranks.agree(error)


def _is_whole(folder: Path) -> bool:
    return (folder / META).is_file()


def _require_own(folder: Path) -> None:
    """Check that nobody else can have put, or can put, a folder of that name there."""
    try:
        own_folder(folder.parent, "data.cache_dir")
    except OSError as error:
        raise DataError(
            f"{folder} cannot be prepared ({error}); choose another `data.cache_dir`, on a disk "
            "where you may write and files can be locked."
        ) from error


def _open(source: SourceConfig, folder: Path) -> TokenStore:
    _require_own(folder)
    try:
        return TokenStore.open(str(source.name), folder)
    except CheckpointError as error:
        raise DataError(
            f"source {source.name!r}: the prepared tokens in {folder} are damaged ({error}); "
            "remove that folder, and they are made anew."
        ) from error
