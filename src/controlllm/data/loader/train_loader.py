"""The training loader: the lanes of a rank, collated, and their state."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any, TypedDict

from transformers import PreTrainedTokenizerBase

from controlllm.common.distributed import Ranks
from controlllm.common.errors import CheckpointError, ConfigError, DataError
from controlllm.common.storage.schema import check_record
from controlllm.data.cache.store import TokenStore
from controlllm.data.config.data_config import DataConfig
from controlllm.data.examples.encode import SourceStats, piece_bos
from controlllm.data.loader.batchers import Item
from controlllm.data.loader.collate import Batch, collate, pad_id
from controlllm.data.loader.draws import Count
from controlllm.data.loader.lane import Lane, LaneState, Pipeline, redeal
from controlllm.data.loader.mixing import plan_shares
from controlllm.data.loader.open_source import Size, estimate_size, make_feed, store_feed, sum_sizes
from controlllm.data.loader.plugins import load_plugins
from controlllm.data.loader.stream import Feed
from controlllm.data.loader.workers import Serving, serve
from controlllm.data.sources.files import digest

__all__ = ["TrainLoader"]

log = logging.getLogger(__name__)

_DECIDES = (
    "mix_by",
    "max_length",
    "packing",
    "packing_strategy",
    "packing_lookahead",
    "group_by_length",
    "max_tokens_per_batch",
    "shuffle",
    "piece_bos",
)
"""Settings that decide what comes next, whatever the number of ranks and workers."""


class LoaderState(TypedDict):
    """Where the loaders of all ranks stand, as a checkpoint holds it."""

    batches: Count
    """Batches that each has given out."""
    lanes: dict[int, LaneState]
    """The lanes by their numbers."""
    data: dict[str, str]
    """Fingerprints of the sources and of how they are mixed."""


class TrainLoader:
    """Training batches: a mix of all sources, shuffled anew each epoch, endless by default.

    The same config, tokenizer, batch size and seed always give the same batches, and a loader that
    loads the state of another goes on with exactly the batches that were left to it; with another
    number of ranks or workers, with exactly the rows that were left.

    Args:
        config: the sources and how to treat them.
        tokenizer: a fast tokenizer.
        batch_size: rows (padded) or slots (packed) of a batch on this rank.
        seed: of the shuffling.
        rehearsal: (what the base wrote, its share of the mix), if any.
        model: for `postprocess` hooks that ask for it.
        ranks: the processes that share the data; by default the process group, if there is one.

    Raises:
        ConfigError: no train source, shares that leave it nothing, or lanes that cannot be shared.
        DataError: a source is missing, empty or unreadable.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        seed: int,
        rehearsal: tuple[TokenStore, float] | None = None,
        model: Any = None,
        ranks: Ranks | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size!r} must be at least 1.")
        if rehearsal and rehearsal[0].lengths.max() > config.max_length:
            raise DataError(
                f"what the base wrote for rehearsal is longer than data.max_length="
                f"{config.max_length}; raise that, or let it write less."
            )
        load_plugins(config)
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self.ranks = ranks or Ranks.current(config.cache_timeout)
        self.batches = 0
        least = self.ranks.world_size * max(config.num_workers, 1)
        self.lanes = config.lanes or least
        if self.lanes % least:
            raise ConfigError(
                f"data.lanes={self.lanes} cannot be shared by {self.ranks.world_size} ranks with "
                f"{config.num_workers} workers each; take a multiple of {least}."
            )
        self._pad_id, self._bos = pad_id(tokenizer), piece_bos(tokenizer, config)
        self.feeds = self._open(tokenizer, model)
        sizes = None
        if config.temperature is not None:
            estimated = map(estimate_size, self.feeds)
            sizes = [s.tokens if config.mix_by == "tokens" else s.examples for s in estimated]
        if rehearsal:
            order_seed = [seed, len(self.feeds)]
            self.feeds.append(store_feed("rehearsal", rehearsal[0], config, order_seed))
        self.plan = plan_shares(config, sizes, rehearsal[1] if rehearsal else 0.0)
        self._check_ranks()
        self._states: dict[int, LaneState] = {}
        self._serving: Serving | None = None

    def _open(self, tokenizer: PreTrainedTokenizerBase, model: Any) -> list[Feed]:
        """The feeds of all sources; where one fails on any rank, all ranks fail with its name."""
        feeds = []
        for number, source in enumerate([*self.config.train, *self.config.replay]):
            error: Exception | None = None
            try:
                seed = [self.seed, number]
                feeds.append(make_feed(source, tokenizer, self.config, seed, model, self.ranks))
            except Exception as failure:  # Told to all ranks, so that none waits for this one.
                error = failure
            self.ranks.agree(error)
        return feeds

    def _check_ranks(self) -> None:
        """Ranks that see other data would draw other rows, some twice and some never."""
        own = self.fingerprints()
        for rank, other in enumerate(self.ranks.gather(own)):
            if differing := sorted(key for key in own if own[key] != other[key]):
                raise DataError(
                    f"rank {rank} and rank {self.ranks.rank} see other data ({differing}): another "
                    "copy of a source, or prepared tokens (`cache_dir`) on one of them only."
                )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch. Collective where there are several ranks: all stop together.

        Raises:
            StopIteration: the train sources have left the mix after their `epochs`.
            DataError: a source failed, on this rank or another.
        """
        slots: Item = []
        error: Exception | None = None
        try:
            slots = self._take()
        except Exception as failure:  # Told to all ranks, so that none waits for this one.
            error = failure
        if self.ranks.agree(error, ended=not slots):
            if not self.batches:
                raise DataError("the train sources hold no examples: " + self.describe())
            if slots:
                log.warning(
                    "Rank %d leaves out its last %d rows or slots: the data of another rank has "
                    "come to its end.",
                    self.ranks.rank,
                    len(slots),
                )
            raise StopIteration
        self.batches += 1
        if self.batches == 1 and self.ranks.rank == 0:
            # Of what each source was read so far, or all that is prepared.
            for feed, drawn in zip(self.feeds, self.progress().values(), strict=True):
                chunks = feed.chunks
                stats = chunks.stats if isinstance(chunks, TokenStore) else drawn["stats"]
                stats.warn_of_few_targets(feed.name, self.config)
        origins = self.plan.origins
        groups = [[(draw.example, origins[draw.source]) for draw in slot] for slot in slots]
        return collate(groups, self.config, self._pad_id)

    def progress(self) -> dict[str, dict[str, Any]]:
        """For each source, on this rank: what became of its rows, and how much was drawn."""
        result: dict[str, dict[str, Any]] = {}
        mixers = [state.mixer for state in self._serve().states().values()]
        for number, feed in enumerate(self.feeds):
            streams = [mixer.streams[number] for mixer in mixers]
            given = sum(mixer.given[number] + mixer.before[number] for mixer in mixers)
            reached = max(stream.reached for stream in streams)
            stats = SourceStats()
            for stream in streams:
                stats.add(stream.stats)
            result[f"{number}:{feed.name}"] = {
                "examples": sum(mixer.drawn[number] for mixer in mixers),
                self.config.mix_by: given,
                "epochs": reached / len(feed.chunks),
                "stats": stats,
            }
        return result

    def report(self) -> list[str]:
        """One line for each source, on this rank: how much was drawn, and what became of rows.

        Drawn is also what still waits to be packed; rows are read further ahead than that.
        """
        return [
            f"{feed.name}: {drawn['examples']:,} examples, some of which still wait"
            + (f"; read ahead: {drawn['stats'].describe()}" if feed.encoder else "")
            for feed, drawn in zip(self.feeds, self.progress().values(), strict=True)
        ]

    def describe(self) -> str:
        """One line for each source: how its rows lie, and how many there are if that is known."""
        return "\n".join(f"{feed.name}: {_describe(feed)}" for feed in self.feeds)

    def size(self) -> Size:
        """Examples and tokens of one epoch of all train sources, with their up-sampling."""
        factors = [max(source.sample, 1.0) for source in self.config.train]
        return sum_sizes(map(estimate_size, self.feeds[: len(factors)]), factors)

    def size_of_all_epochs(self) -> Size | None:
        """What the train sources give before they have left the mix; None if one never does."""
        feeds = self.feeds[: len(self.config.train)]
        epochs = [feed.numbers / len(feed.chunks) for feed in feeds if feed.numbers is not None]
        return sum_sizes(map(estimate_size, feeds), epochs) if len(epochs) == len(feeds) else None

    def state_dict(self) -> dict[str, Any]:
        """Counters and references of all lanes, as JSON takes them. Collective."""
        lanes: dict[int, LaneState] = {}
        for part in self.ranks.gather(self._serve().states()):
            lanes |= part
        plain = {lane: asdict(state) for lane, state in lanes.items()}
        state = {"batches": self.batches, "lanes": plain, "data": self.fingerprints()}
        values: dict[str, Any] = json.loads(json.dumps(state))
        return values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the loaders that gave this state stood, on any number of ranks and workers.

        Raises:
            CheckpointError: the state is damaged, or belongs to other sources, shares or seed.
        """
        read: LoaderState = check_record(state, LoaderState, "the data state")
        self._check(read)
        lanes = [read["lanes"][number] for number in range(len(read["lanes"]))]
        if len(lanes) != self.lanes:
            text = "The data was dealt into %d lanes, now into %d: every row still comes once, but "
            text += "not in the same batches; data.lanes=%d keeps them."
            log.warning(text, len(lanes), self.lanes, len(lanes))
            lanes = redeal(lanes, self.lanes)
        self.close()
        self._states = dict(enumerate(lanes))
        self.batches = read["batches"]

    def close(self) -> None:
        """End the worker processes, if there are any; the next batch starts them anew."""
        if self._serving is not None:
            self._states |= self._serving.states()
            self._serving.close()
            self._serving = None

    def fingerprints(self) -> dict[str, str]:
        """What the sequence of batches depends on: each source, and how they are mixed."""
        mix = self.seed, self.plan, [getattr(self.config, name) for name in _DECIDES]
        sources = {f"{i}:{feed.name}": feed.fingerprint for i, feed in enumerate(self.feeds)}
        return {"mix": digest(*mix), **sources}

    def _check(self, state: LoaderState) -> None:
        own, written = self.fingerprints(), state["data"]
        differing = sorted(key for key in own | written if own.get(key) != written.get(key))
        if differing:
            raise CheckpointError(
                f"the data state belongs to other data: {differing} changed (mix = a share, the "
                "seed, packing or lengths; a source = its files, its options, the tokenizer, or "
                "whether it was prepared), so the run cannot go on exactly; restore them, or "
                "start a new run."
            )
        lanes, wrong = state["lanes"], ""
        if not lanes or set(lanes) != set(range(len(lanes))):
            wrong = f"lanes={sorted(lanes)} must be numbered 0, 1, 2, ..."
        for number, lane in lanes.items():
            sources = [reference[0] for reference in lane.batcher.waiting]
            if (
                len(lane.mixer.given) != len(self.feeds)
                or lane.mixer.stage >= len(self.plan.stages)
                or max(sources, default=0) >= len(self.feeds)
            ):
                wrong = wrong or f"lane {number} has other sources or stages than the run"
        if wrong:
            text = f"the data state is damaged: {wrong}; take an earlier checkpoint."
            raise CheckpointError(text)

    def _serve(self) -> Serving:
        if self._serving is None:
            numbers, config = range(self.ranks.rank, self.lanes, self.ranks.world_size), self.config
            parts = self.feeds, self.plan, config, self.batch_size, self.seed, self._bos
            make = partial(_make_lane, Pipeline(*parts), self.lanes, self._states)
            self._serving = serve(numbers, make, config.num_workers, config.prefetch_factor)
        return self._serving

    def _take(self) -> Item:
        """The slots (or rows) of the next batch; fewer at the end of the data."""
        count = self.batch_size if self.config.packing else 1
        return [slot for item in islice(iter(self._serve().next, []), count) for slot in item]


def _make_lane(
    pipeline: Pipeline, lanes: int, states: Mapping[int, LaneState], number: int
) -> Lane:
    load_plugins(pipeline.config)  # A spawned worker process has none yet.
    lane = Lane(pipeline, number, lanes)
    if number in states:
        lane.load(states[number])
    return lane


def _describe(feed: Feed) -> str:
    chunks = feed.chunks
    parts = [f"{len(chunks):,} {'rows' if chunks.by_row else 'chunks'}"]
    if chunks.num_rows is not None and not chunks.by_row:
        parts.append(f"{chunks.num_rows:,} rows")
    if chunks.num_bytes is not None:
        parts.append(f"{chunks.num_bytes / 2**20:,.1f} MiB")
    if isinstance(chunks, TokenStore):
        parts.append(f"{chunks.tokens:,} tokens, prepared")
    return ", ".join(parts)
