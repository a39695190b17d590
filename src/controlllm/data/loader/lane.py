"""A lane: the whole pipeline in miniature, independent of all other lanes (decision 0003).

`redeal` is what makes a run elastic: it deals everything that some number of lanes had pending to
another number of lanes. Each (epoch, row) is still given out exactly once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlllm.data.config.data_config import DataConfig
from controlllm.data.loader.batchers import Item, Waiting, make_batcher, redeal_batchers
from controlllm.data.loader.mixing import Mixer, Plan, redeal_counts
from controlllm.data.loader.shuffle import seed_of
from controlllm.data.loader.stream import Feed, Stream

__all__ = ["Lane", "Pipeline", "redeal"]

State = dict[str, Any]


@dataclass(frozen=True)
class Pipeline:
    """What all lanes of a run have in common."""

    feeds: Sequence[Feed]
    """All sources."""
    plan: Plan
    """How they are mixed."""
    config: DataConfig
    """Packing or padding."""
    batch_size: int
    """Rows of a padded batch."""
    seed: int
    """Of the run."""
    bos: int | None = None
    """What opens the rests of documents that begin with it, see `piece_bos`."""


class Lane:
    """Draws from every source, mixes, and gives out items."""

    def __init__(self, pipeline: Pipeline, number: int, lanes: int) -> None:
        self.number = number
        self.items = 0
        config, seed = pipeline.config, pipeline.seed
        streams = [
            Stream(feed, number, lanes, seed_of(seed, source, number, 1))
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

    def state_dict(self) -> State:
        """Counters and references, a few KB of JSON."""
        return {
            "items": self.items,
            "mixer": self.mixer.state_dict(),
            "batcher": self.batcher.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on where the lane of a state stood; what it had pending is read again."""
        self.items = state["items"]
        self.mixer.load_state_dict(state["mixer"])
        references = state["batcher"]["waiting"]
        waiting: dict[int, Waiting] = {}
        for source, stream in enumerate(self.mixer.streams):
            places = [i for i, reference in enumerate(references) if reference[0] == source]
            drawn = stream.recall([tuple(references[i][1:4]) for i in places])
            for i, again in zip(places, drawn, strict=True):
                waiting[i] = Waiting((source, *again), references[i][4], self.batcher.bos)
        self.batcher.load_state_dict(state["batcher"], [waiting[i] for i in sorted(waiting)])


def redeal(states: Sequence[State], lanes: int) -> list[State]:
    """The states of all lanes -> states for another number of lanes."""
    mixers = [state["mixer"] for state in states]
    counts = redeal_counts(mixers, lanes)
    sources = range(len(mixers[0]["streams"]))
    streams = [_redeal_stream([mixer["streams"][s] for mixer in mixers], lanes) for s in sources]
    batchers = redeal_batchers([state["batcher"] for state in states], lanes)
    return [
        {
            "items": 0,
            "mixer": {
                **counts[lane],
                "streams": [stream[lane] for stream in streams],
            },
            "batcher": batchers[lane],
        }
        for lane in range(lanes)
    ]


def _redeal_stream(states: Sequence[State], lanes: int) -> list[State]:
    """One source: its pending units and references are dealt out, new numbers begin behind all."""
    frontier = max(state["next"] for state in states)
    units = [unit for state in states for unit in state["units"][: state["open"]]]
    # Lanes that lagged behind would have opened these next.
    units += [unit for state in states for unit in state["units"][state["open"] :]]
    for lane, state in enumerate(states):
        units += _lag(state, lane, len(states), frontier)
    buffer = [reference for state in states for reference in state["buffer"]]
    queue = [reference for state in states for reference in state["queue"]]
    stats = [state["stats"] for state in states]
    empty = dict.fromkeys(stats[0], 0)
    total = {name: sum(values[name] for values in stats) for name in empty}
    return [
        {
            "frontier": frontier,
            "turn": max(state["turn"] for state in states),
            "reached": max(state["reached"] for state in states),
            "rows_at_once": min(state["rows_at_once"] for state in states),
            "units": units[lane::lanes],
            "open": 0,
            "buffer": buffer[lane::lanes],
            "queue": queue[lane::lanes],
            "stats": total if lane == 0 else empty,
        }
        for lane in range(lanes)
    ]


def _lag(state: Mapping[str, Any], lane: int, lanes: int, frontier: int) -> list[list[int]]:
    """The units that a lane had not yet opened before the frontier."""
    if state["by_block"]:
        return [[number, 0, 1, 0] for number in range(state["next"], frontier, lanes)]
    return [
        [number, 0, lanes, (lane + number) % lanes] for number in range(state["next"], frontier)
    ]
