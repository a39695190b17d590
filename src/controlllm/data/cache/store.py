"""Examples that are tokens already: what a model wrote for rehearsal, or a prepared source.

On disk a store is a folder: `ids.bin` (uint16 where the vocabulary allows, else int32),
`targets.bin` (bytes 0 or 1), `ends.npy` (int64, where each example ends), perhaps `index.npy`
(which examples take part, in which order) or, where examples are slots of several documents,
`starts.npy` and `starts_ends.npy` (where these begin), and `meta.json`. It is memory-mapped:
opening costs the same for any size.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from controlllm.common.errors import DataError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.common.storage.files import read_json, write_json
from controlllm.data.examples.encode import Example, SourceStats
from controlllm.data.sources import Chunks, Located
from controlllm.data.sources.files import digest

__all__ = ["StoreWriter", "TokenStore"]

IDS, TARGETS, ENDS, INDEX, META = "ids.bin", "targets.bin", "ends.npy", "index.npy", "meta.json"
STARTS, STARTS_ENDS = "starts.npy", "starts_ends.npy"


_IGNORED = np.int32(IGNORE_INDEX)
_load = partial(np.load, allow_pickle=False)


class TokenStore(Chunks):
    """Examples in flat arrays, each a chunk of its own: `store[i] -> Example`.

    Args:
        name: of the source, for messages.
        input_ids: token ids of all examples, one after the other (tokens).
        targets: which of them are targets (tokens), bool.
        ends: where each example ends in them (examples), int64.
        index: the examples that take part, in their order; by default all.
        fingerprint: of where they came from; by default a hash of all arrays.

    Raises:
        DataError: there is no example.
    """

    phases: Sequence[int] | None = None
    """Where the examples come in phases, easy ones first: how many each phase has."""
    folder: Path | None = None
    """Where it lies on disk."""
    _starts: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None
    """Where the documents of slots begin: `Example.starts` of all, and where each one's end."""

    def __init__(
        self,
        name: str,
        input_ids: NDArray[np.integer],
        targets: NDArray[np.bool_],
        ends: NDArray[np.int64],
        index: NDArray[np.int64] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if not len(ends if index is None else index):
            raise DataError(f"source {name!r} holds no examples.")
        self.name = name
        self.num_rows = len(ends if index is None else index)
        self.stats = SourceStats()
        self._ids, self._targets, self._ends, self._index = input_ids, targets, ends, index
        self.fingerprint = fingerprint or digest(*(a.tobytes() for a in (input_ids, targets, ends)))

    @classmethod
    def from_examples(cls, name: str, examples: Sequence[Example]) -> "TokenStore":
        """Documents, or slots of several documents each; held in memory.

        Raises:
            DataError: there is none.
        """
        if not examples:
            raise DataError(f"source {name!r} holds no examples.")
        none = np.empty(0, np.int32)
        starts = [none if example.starts is None else example.starts for example in examples]
        store = cls(
            name,
            np.concatenate([example.input_ids for example in examples]),
            np.concatenate([example.labels for example in examples]) != IGNORE_INDEX,
            np.cumsum(list(map(len, examples))),
        )
        if any(example.starts is not None for example in examples):
            store._starts = np.concatenate(starts), np.cumsum(list(map(len, starts)))
        return store

    @classmethod
    def open(cls, name: str, folder: Path) -> "TokenStore":
        """A store on disk.

        Raises:
            DataError: a file has not the size it was written with.
        """
        meta = read_json(folder / META)
        for file, size in meta["files"].items():
            found = (folder / file).stat().st_size if (folder / file).is_file() else None
            if found != size:
                raise DataError(
                    f"source {name!r}: the prepared tokens in {folder} are damaged ({file} has "
                    f"{found} bytes, not {size}); remove that folder, and they are made anew."
                )
        if not meta["files"][IDS]:  # Which cannot be mapped.
            raise DataError(f"source {name!r} holds no examples.")
        # Plain views of the mapped files: slicing a `memmap` costs several times more.
        ids = np.asarray(np.memmap(folder / IDS, dtype=meta["dtype"], mode="r"))
        targets = np.asarray(np.memmap(folder / TARGETS, dtype=bool, mode="r"))
        ends = np.asarray(_load(folder / ENDS, mmap_mode="r"))
        has_index = INDEX in meta["files"]
        index = np.asarray(_load(folder / INDEX, mmap_mode="r")) if has_index else None
        store = cls(name, ids, targets, ends, index, meta["fingerprint"])
        if STARTS in meta["files"]:
            store._starts = _load(folder / STARTS), _load(folder / STARTS_ENDS)
        store.folder, store.phases = folder, meta["phases"]
        store.stats = SourceStats(**meta["stats"])
        return store

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """What lies on disk is opened again in a worker process, not sent there."""
        if self.folder is None:
            return super().__reduce_ex__(protocol)
        return TokenStore.open, (self.name, self.folder)

    @property
    def vocabulary(self) -> int:
        """A number that is above every token id."""
        return int(np.iinfo(self._ids.dtype).max) + 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example (examples); computed anew, for a large store is not in memory."""
        lengths = np.diff(self._ends, prepend=0)
        return lengths if self._index is None else lengths[self._index]

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return int(self._ends[-1]) if self._index is None else int(self.lengths.sum())

    def __len__(self) -> int:
        return self.num_rows or 0

    def __getitem__(self, index: int) -> Example:
        """The example at `index` (0 <= index < len)."""
        if not 0 <= index < len(self):
            raise IndexError(f"source {self.name!r} has {len(self)} examples; there is no {index}.")
        return self.examples([index])[0]

    def examples(self, indices: Sequence[int]) -> list[Example]:
        """The examples at several places, each 0 <= place < len; quicker than one by one."""
        places, starts, ends = self._bounds(indices)
        within: list[NDArray[np.int32] | None] = [None] * len(places)
        if self._starts is not None:
            own = zip(*(each.tolist() for each in _ranges(self._starts[1], places)), strict=True)
            within = [self._starts[0][first:last] for first, last in own]
        made = []
        for start, end, inner in zip(starts.tolist(), ends.tolist(), within, strict=True):
            ids = self._ids[start:end].astype(np.int32)
            # The ids at targets, -100 elsewhere; quicker than to choose.
            labels = ids - _IGNORED
            labels *= self._targets[start:end]
            labels += _IGNORED
            made.append(Example(ids, labels, inner))
        return made

    def lengths_of(self, indices: Sequence[int]) -> list[int]:
        """Tokens of the examples at several places."""
        _, starts, ends = self._bounds(indices)
        return (ends - starts).tolist()

    def _bounds(self, indices: Sequence[int]) -> tuple[NDArray[np.int64], ...]:
        """Places in the arrays, where these examples begin, and where they end."""
        places = np.asarray(indices)
        if self._index is not None:
            places = self._index[places]
        return places, *_ranges(self._ends, places)

    def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
        """The one example of a chunk."""
        if start == 0:
            yield f"{self.name}[{chunk}]", self[chunk]


class StoreWriter:
    """Writes a store example by example, into a folder that only gets its name once it is whole."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        self.folder = folder
        self.dtype = "uint16" if vocabulary <= 2**16 else "int32"
        self.lengths = array("q")
        self._digest = blake2b(digest_size=16)
        self._starts, self._starts_ends = array("i"), array("q")
        self._ids = (folder / IDS).open("wb")
        self._targets = (folder / TARGETS).open("wb")

    def __enter__(self) -> "StoreWriter":
        """The writer; its files are closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self._ids.close()
        self._targets.close()

    def write_all(self, examples: Iterable[Example]) -> int:
        """Add examples, and count them."""
        before = len(self.lengths)
        for example in examples:
            self.write(example)
        return len(self.lengths) - before

    def write(self, example: Example) -> None:
        """Add an example."""
        ids, targets = example.input_ids.astype(self.dtype), example.labels != IGNORE_INDEX
        for file, values in ((self._ids, ids), (self._targets, targets)):
            file.write(values.tobytes())
            self._digest.update(values.tobytes())
        self._digest.update(len(ids).to_bytes(8, "little"))
        self.lengths.append(len(ids))
        if example.starts is not None:
            starts = example.starts.tobytes()
            self._digest.update(starts)
            self._starts.frombytes(starts)
            self._starts_ends.append(len(self._starts))

    def finish(
        self,
        stats: SourceStats,
        index: NDArray[np.int64] | None = None,
        phases: Sequence[int] | None = None,
    ) -> None:
        """Write what is known only at the end; the files are closed."""
        self.__exit__()
        np.save(self.folder / ENDS, np.cumsum(self.lengths, dtype=np.int64))
        if self._starts_ends:
            np.save(self.folder / STARTS, np.array(self._starts, dtype=np.int32))
            np.save(self.folder / STARTS_ENDS, np.array(self._starts_ends, dtype=np.int64))
        if index is not None:
            np.save(self.folder / INDEX, index)
            self._digest.update(index.tobytes())
        meta = {
            "dtype": self.dtype,
            "files": {file.name: file.stat().st_size for file in sorted(self.folder.iterdir())},
            "fingerprint": self._digest.hexdigest(),
            "phases": phases,
            "stats": vars(stats),
        }
        write_json(self.folder / META, meta)


def _ranges(
    ends: NDArray[np.int64], places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the parts at some places begin and end."""
    return np.where(places > 0, ends[places - 1], 0), ends[places]
