"""What a stream gives out, and the state that it goes on from.

A *reference* (number, row, piece) names an example for ever: the piece of a row of a chunk of an
epoch. Whatever was read but not drawn is kept as references, and is read again on resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, NamedTuple, TypeAlias

from controlllm.common.errors import ConfigError
from controlllm.common.storage.schema import between, fitting
from controlllm.data.examples.encode import Example, SourceStats

__all__ = ["Count", "Draw", "Reference", "StreamState", "Unit", "numbers", "redeal_streams"]

Reference: TypeAlias = tuple[int, int, int]
"""(number, row, piece): the chunk by its number over all epochs, the row in it, the row's piece."""

Count: TypeAlias = Annotated[int, between(0, 2**63 - 1)]
"""A number in a state."""


def numbers(length: int) -> object:
    """What so many numbers in a state have to be, to stand beside their type in `Annotated`."""
    return fitting(
        lambda values: len(values) == length and min(values) >= 0, f"{length} numbers from 0 on"
    )


class Draw(NamedTuple):
    """An example that a source gave, or the rest of one."""

    source: int
    """The number of the source among all of the run."""
    reference: Reference
    """Which example it is."""
    example: Example
    """Its tokens and labels; of a rest only what is left."""
    start: int = 0
    """Tokens of it that were given out before."""

    @property
    def repeats_bos(self) -> bool:
        """Whether BOS was put before what is left of it (not where its row was split)."""
        return self.start > 0 and self.example.reopened

    def rest(self, length: int, bos: int | None) -> "Draw":
        """What is left once `length` tokens were given out: it begins with the last of them.

        Where the example begins with `bos`, so does its rest.
        """
        start = self.start + length - self.repeats_bos - 1
        return self._replace(example=self.example.part(length - 1, None, bos), start=start)


@dataclass(frozen=True)
class Unit:
    """What is left of a chunk for a lane: its rows offset, offset + stride, ... from `taken` on."""

    number: Count
    """Of the chunk, over all epochs."""
    taken: Count = 0
    """Rows that were read, those of other lanes included."""
    stride: Annotated[int, between(1, 2**31)] = 1
    """How many lanes share the chunk."""
    offset: Count = 0
    """Which of them this lane is."""


References: TypeAlias = tuple[Annotated[Reference, numbers(3)], ...]


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands."""

    next: Count
    """The number of the chunk that it opens next."""
    turn: Count
    """How often it has drawn lots."""
    reached: Count
    """The number behind the last chunk that it drew an example of."""
    rows_at_once: Count
    """How many rows it tokenizes in one call."""
    by_chunk: bool
    """Whether each lane has chunks of its own, or all lanes share the rows of each."""
    units: tuple[Unit, ...]
    """Chunks that are open, then those to be opened before `next`."""
    open: Count
    """How many units are open."""
    buffer: References
    """Rows that were read and wait to be mixed."""
    queue: References
    """Examples that are next, in order."""
    stats: SourceStats
    """What became of the rows read."""
    dealt_anew: bool = False
    """Whether `next` is where all lanes begin, side by side."""

    def __post_init__(self) -> None:
        """Refuse more open units than there are by a `ConfigError`."""
        if self.open > len(self.units):
            raise ConfigError(f"open={self.open} must be at most the number of units.")


def redeal_streams(states: Sequence[StreamState], lanes: int) -> list[StreamState]:
    """One source's states in all lanes -> states for another number of lanes.

    Pending units and references are dealt out, new numbers begin behind all.
    """
    frontier = max(state.next for state in states)
    units = [unit for state in states for unit in state.units[: state.open]]
    # Lanes that lagged behind would have opened these next.
    units += [unit for state in states for unit in state.units[state.open :]]
    count = len(states)
    for lane, state in enumerate(states):
        if state.by_chunk:
            units += map(Unit, range(state.next, frontier, count))
        else:
            units += (Unit(n, 0, count, (lane + n) % count) for n in range(state.next, frontier))
    buffer = tuple(chain.from_iterable(state.buffer for state in states))
    queue = tuple(chain.from_iterable(state.queue for state in states))
    total = SourceStats()
    for state in states:
        total.add(state.stats)
    return [
        StreamState(
            next=frontier,
            turn=max(state.turn for state in states),
            reached=max(state.reached for state in states),
            rows_at_once=min(state.rows_at_once for state in states),
            by_chunk=states[0].by_chunk,
            units=tuple(units[lane::lanes]),
            open=0,
            buffer=buffer[lane::lanes],
            queue=queue[lane::lanes],
            stats=SourceStats() if lane else total,
            dealt_anew=True,
        )
        for lane in range(lanes)
    ]
