"""A lane: all sources, mixed and batched, independent of all other lanes (decision 0003).

`redeal` is what makes a run elastic: it deals everything that some number of lanes had pending to
another number of lanes. Each (epoch, row) is still given out exactly once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from controlllm.data.config.data_config import DataConfig
from controlllm.data.loader.batchers import BatcherState, Item, make_batcher, redeal_batchers
from controlllm.data.loader.draws import Count, Draw
from controlllm.data.loader.mixing import Mixer, MixerState, Plan, redeal_mixers
from controlllm.data.loader.shuffle import seed_of
from controlllm.data.loader.stream import Feed, Stream

__all__ = ["Lane", "LaneState", "Pipeline", "redeal"]


@dataclass(frozen=True)
class Pipeline:
    """What all lanes of a run have in common."""

    feeds: Sequence[Feed]
    plan: Plan
    """How they are mixed."""
    config: DataConfig
    """Packing or padding."""
    batch_size: int
    """Rows of a padded batch."""
    seed: int
    bos: int | None = None
    """What opens the rests of documents that begin with it, see `piece_bos`."""


@dataclass(frozen=True)
class LaneState:
    """Where a lane stands: `redeal` deals what all lanes have pending to other lanes."""

    items: Count
    """Items that it gave out."""
    mixer: MixerState
    """Its sources."""
    batcher: BatcherState
    """What waits for a batch."""


class Lane:
    """Draws from every source, mixes, and gives out items."""

    def __init__(self, pipeline: Pipeline, number: int, lanes: int) -> None:
        self.number = number
        self.items = 0
        config, seed = pipeline.config, pipeline.seed
        streams = [
            Stream(feed, number, lanes, seed_of(seed, source, number, 1), source)
            for source, feed in enumerate(pipeline.feeds)
        ]
        self.mixer = Mixer(streams, pipeline.plan, config.mix_by, lanes)
        # Not of the lane's number: grouped batches come in the same order in all lanes.
        order_seed, size = seed_of(seed, 2), pipeline.batch_size
        self.batcher = make_batcher(self.mixer.draw, config, size, order_seed, pipeline.bos)

    def next(self) -> Item:
        """The next item, empty at the end of the data."""
        item = self.batcher.next()
        self.items += bool(item)
        return item

    def state(self) -> LaneState:
        """Counters and references, a few KB of JSON."""
        return LaneState(self.items, self.mixer.state(), self.batcher.state())

    def load(self, state: LaneState) -> None:
        """Go on where the lane of a state stood; what it had pending is read again.

        Raises:
            DataError: a source no longer holds what was pending.
        """
        self.items = state.items
        self.mixer.load(state.mixer)
        references = state.batcher.waiting
        waiting: dict[int, Draw] = {}
        for source, stream in enumerate(self.mixer.streams):
            places = [i for i, reference in enumerate(references) if reference[0] == source]
            drawn = stream.recall([references[i][1:4] for i in places])
            waiting |= zip(places, drawn, strict=True)
        self.batcher.load(state.batcher, [waiting[i] for i in range(len(references))])


def redeal(states: Sequence[LaneState], lanes: int) -> list[LaneState]:
    """The states of all lanes -> states for another number of lanes."""
    mixers = redeal_mixers([state.mixer for state in states], lanes)
    batchers = redeal_batchers([state.batcher for state in states], lanes)
    return [LaneState(0, *parts) for parts in zip(mixers, batchers, strict=True)]
