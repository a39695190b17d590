"""Draws -> items: a packed slot, or the rows of a padded batch.

```
best fit   whole documents in a slot: by age, then the longest that fits     waiting: rows
concat     documents one after the other, cut at the slot's end              waiting: a rest
fixed      a slot that was filled beforehand (`slots`)                        waiting: -
rows       so many rows in the order drawn                                   waiting: -
grouped    rows of like length, many at a time, up to a number of rows       waiting: batches
           or a budget of padded tokens
```
What waits is kept as references in the state, and is read again on resume.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Annotated

from controlllm.data.config.data_config import DataConfig
from controlllm.data.loader.collate import padded_width
from controlllm.data.loader.draws import Count, Draw, numbers
from controlllm.data.loader.packing import choose_for_slot, window_is_full
from controlllm.data.loader.shuffle import random_below

__all__ = [
    "Batcher",
    "BatcherState",
    "Item",
    "Slot",
    "fill_ratio",
    "item_capacity",
    "item_tokens",
    "make_batcher",
    "redeal_batchers",
]

BATCHES, ROWS, TOKENS = 16, 2048, 2**19
"""A pool has at least so many batches, and so many rows (or tokens, where a budget counts)."""


Slot = list[Draw]
"""The documents in a slot, or the one row of a padded batch."""

Item = list[Slot]
"""One packed slot, or the rows of a padded batch; empty at the end of the data."""


@dataclass(frozen=True)
class BatcherState:
    """What waits in a batcher."""

    waiting: tuple[Annotated[tuple[int, int, int, int, int], numbers(5)], ...]
    """(source, number, row, piece, start) of each draw."""
    sizes: tuple[Count, ...] = ()
    """Rows of the batches that are left of the present pool."""
    pools: Count = 0
    """How many pools were cut."""


class Batcher(ABC):
    """Makes items of the draws of a lane; see `make_batcher`."""

    repeated_bos: int = 0
    """BOS tokens before rests so far."""

    def __init__(
        self,
        draw: Callable[[], Draw | None],
        config: DataConfig,
        batch_size: int,
        seed: int,
        bos: int | None = None,
    ) -> None:
        self._draw = draw
        self.config, self.batch_size, self.seed, self.bos = config, batch_size, seed, bos
        self.waiting: list[Draw] = []

    @abstractmethod
    def next(self) -> Item:
        """The next item, empty at the end."""

    def state(self) -> BatcherState:
        """All that waits."""
        return BatcherState(tuple((d.source, *d.reference, d.start) for d in self.waiting))

    def load(self, state: BatcherState, waiting: Sequence[Draw]) -> None:
        """Go on with what a state had waiting: the whole examples, read again by the caller."""
        self.waiting = [
            draw.rest(start + 1, self.bos) if start else draw
            for draw, (*_, start) in zip(waiting, state.waiting, strict=True)
        ]

    def _fill(self, rows: int) -> None:
        """Let up to so many rows wait."""
        while len(self.waiting) < rows and (draw := self._draw()) is not None:
            self.waiting.append(draw)


class BestFit(Batcher):
    """Slots of whole documents."""

    def next(self) -> Item:
        """The next item, empty at the end."""
        capacity, lookahead = self.config.max_length, self.config.packing_lookahead
        lengths = [len(draw.example) for draw in self.waiting]
        tokens = sum(lengths)
        while not window_is_full(len(lengths), tokens, capacity, lookahead):
            if (draw := self._draw()) is None:
                break
            self.waiting.append(draw)
            lengths.append(len(draw.example))
            tokens += lengths[-1]
        if not lengths:
            return []
        slot: Slot = []
        # From the end, so that the places of those before stay as they are.
        for place in reversed(choose_for_slot(lengths, capacity)):
            slot.append(self.waiting.pop(place))
        return [slot[::-1]]


class Concat(Batcher):
    """Slots filled to the end: a document that does not fit goes on in the next slot.

    Its rest begins with the last token that was given out, so that every token is predicted once;
    before that with BOS, where the document begins with it.
    """

    def next(self) -> Item:
        """The next item, empty at the end."""
        slot: Slot = []
        room = self.config.max_length
        while room >= 2:
            self._fill(1)
            if not self.waiting or room < 2 + self.waiting[0].repeats_bos:
                break
            draw = self.waiting[0]
            self.repeated_bos += draw.repeats_bos
            if len(draw.example) > room:
                slot.append(draw._replace(example=draw.example.part(0, room, None)))
                self.waiting[0] = draw.rest(room, self.bos)
                break
            slot.append(self.waiting.pop(0))
            room -= len(draw.example)
        return [slot] if slot else []


class Rows(Batcher):
    """Rows in the order drawn."""

    def next(self) -> Item:
        """The next item, empty at the end."""
        self._fill(self.batch_size)
        rows, self.waiting = self.waiting[: self.batch_size], self.waiting[self.batch_size :]
        return [[draw] for draw in rows]


class Grouped(Batcher):
    """Batches of rows of like length, cut out of a sorted pool, in a shuffled order.

    The order is the same in every lane: at any moment all lanes give out the same quantile of
    lengths, so that ranks have equal work without talking to one another. The more rows a pool has,
    the closer the quantiles of two lanes are.
    """

    pools = 0
    """How many pools were cut so far."""

    sizes: Sequence[int] = ()
    """Rows of the batches that are left of the present pool."""

    def next(self) -> Item:
        """The next item, empty at the end."""
        if not self.sizes:
            self._make_pool()
        if not self.sizes:
            return []
        size, *self.sizes = self.sizes
        rows, self.waiting = self.waiting[:size], self.waiting[size:]
        return [[draw] for draw in rows]

    def state(self) -> BatcherState:
        """All that waits, and how it is cut into batches."""
        return replace(super().state(), sizes=tuple(self.sizes), pools=self.pools)

    def load(self, state: BatcherState, waiting: Sequence[Draw]) -> None:
        """Go on with the batches of a state; one that was dealt anew has none yet."""
        super().load(state, waiting)
        self.sizes, self.pools = state.sizes, state.pools

    def _make_pool(self) -> None:
        """Cut the oldest rows into batches; what waits is their rows in order, then all others."""
        old = len(self.waiting)
        count, ended = self._size_of_pool()
        # By length: once falling, once rising.
        down = self.pools % 2 == 0
        batches = self._cut(
            sorted(range(count), key=lambda i: len(self.waiting[i].example), reverse=down)
        )
        # The last is seldom full. It goes into the next pool, but no row does so twice.
        waits = len(batches) > 1 and not ended and min(batches[-1]) >= old
        rest = batches.pop() if waits and self.config.max_tokens_per_batch else []
        order = sorted(
            range(len(batches)), key=lambda i: random_below(2**60, self.seed + self.pools, i)
        )
        self.pools += 1
        self.sizes = [len(batches[i]) for i in order]
        places = [place for i in order for place in batches[i]] + rest
        self.waiting = [self.waiting[i] for i in [*places, *range(count, len(self.waiting))]]

    def _size_of_pool(self) -> tuple[int, bool]:
        """How many rows are in the next pool, and whether the draws have ended before it was full.

        Without a budget all lanes have pools of equally many rows.
        """
        count = tokens = 0
        while not self._is_full(count, tokens):
            self._fill(count + 1)
            if count == len(self.waiting):
                return count, True
            tokens += len(self.waiting[count].example)
            count += 1
        return count, False

    def _is_full(self, rows: int, tokens: int) -> bool:
        if budget := self.config.max_tokens_per_batch:
            return tokens >= BATCHES * budget and (rows >= ROWS or tokens >= TOKENS)
        return rows >= max(BATCHES, -(-ROWS // self.batch_size)) * self.batch_size

    def _cut(self, places: Sequence[int]) -> list[list[int]]:
        """Batches of at most so many rows, or padded tokens."""
        budget, batches = self.config.max_tokens_per_batch, list[list[int]]()
        longest = 0
        for place in places:
            length = len(self.waiting[place].example)
            longest = max(longest, length)
            count = len(batches[-1]) + 1 if batches else 1
            width = padded_width(longest, self.config.max_length)
            full = count * width > budget if budget else count > self.batch_size
            if full or not batches:
                batches.append([])
                longest = length
            batches[-1].append(place)
        return batches


def item_capacity(item: Item, config: DataConfig) -> int:
    """Tokens that the tensors of an item have room for, padding included."""
    if config.packing:
        return len(item) * config.max_length
    longest = max((len(draw.example) for row in item for draw in row), default=0)
    return len(item) * padded_width(longest, config.max_length)


def item_tokens(item: Item) -> int:
    """Tokens of an item."""
    return sum(len(draw.example) for slot in item for draw in slot)


def fill_ratio(items: Sequence[Item], config: DataConfig) -> float:
    """Real tokens per token of the tensors."""
    capacity = sum(item_capacity(item, config) for item in items)
    return sum(map(item_tokens, items)) / capacity


def redeal_batchers(states: Sequence[BatcherState], lanes: int) -> list[BatcherState]:
    """The states of the batchers of all lanes -> states for another number of lanes.

    How a pool was cut into batches is forgotten: pools are made anew of all that waits.
    """
    # What waits longest stands first in each lane, so lanes take turns.
    turns = zip_longest(*(state.waiting for state in states))
    waiting = tuple(reference for turn in turns for reference in turn if reference is not None)
    return [BatcherState(waiting[lane::lanes]) for lane in range(lanes)]


def make_batcher(
    draw: Callable[[], Draw | None],
    config: DataConfig,
    batch_size: int,
    seed: int,
    bos: int | None = None,
) -> Batcher:
    """The batcher that a config asks for.

    `draw` gives None at the end of the data; `seed` is of the order of grouped batches; `bos` is
    put before the rest of a document that began with it.
    """
    if config.has_fixed_slots:
        return Rows(draw, config, 1, seed)
    kind: type[Batcher] = Rows
    if config.packing:
        kind = Concat if config.packing_strategy == "concat" else BestFit
    elif config.group_by_length or config.max_tokens_per_batch is not None:
        kind = Grouped
    return kind(draw, config, batch_size, seed, bos)
