"""One source, as one lane draws from it: shuffled, endless, and resumable.

```
numbers -> open chunks -> rows -> shuffle buffer -> tokenized a few at a time, mixed -> queue
 next      [unit, ...]            [reference, ...]                                [reference, ...]
```

What stands below is the state: plain numbers (see `draws`).
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from controlllm.common.errors import DataError
from controlllm.data.cache.store import TokenStore
from controlllm.data.examples.encode import BAD_ROWS_TOLD, RowEncoder, SourceStats, encode_rows
from controlllm.data.loader.draws import Draw, Reference, StreamState, Unit
from controlllm.data.loader.shuffle import Order, random_below
from controlllm.data.sources import Chunks, Located

__all__ = ["Feed", "Stream"]

OPEN_CHUNKS = 16
"""Chunks of a large source that are read side by side."""

TOKENS_AT_ONCE, MOST_ROWS_AT_ONCE = 32_768, 256
"""About how much is tokenized in one call: enough for the tokenizer's speed."""

EXAMPLES_AT_ONCE = 64
"""Examples of a store that are taken at once; there is nothing to gain from more."""


@dataclass(frozen=True)
class Feed:
    """Where a stream's examples come from."""

    name: str
    """As metrics call it."""
    chunks: Chunks
    """Its rows (or examples, if they are prepared)."""
    order: Order
    """The order of its chunks."""
    encoder: RowEncoder | None
    """Turns rows into examples; None where the rows are examples already."""
    numbers: int | None = None
    """How many chunks to give out over all epochs; None = endless."""
    buffer: int = 0
    """Rows that are mixed on top of the order of chunks."""
    key: str = ""
    """A hash that changes when rows would become other examples (tokenizer, template, options)."""

    @property
    def fingerprint(self) -> str:
        """A text that changes when the sequence of examples does."""
        return f"{self.chunks.fingerprint}/{self.key}/{self.numbers}/{self.buffer}"


class Stream:
    """Draws examples of one source for one of `lanes` lanes; `seed` is of the lots it draws."""

    def __init__(self, feed: Feed, lane: int, lanes: int, seed: int, source: int = 0) -> None:
        encoder = feed.encoder.fresh() if feed.encoder else None
        self.feed, self.source = replace(feed, encoder=encoder), source
        self.stats = encoder.stats if encoder else SourceStats()
        # With few chunks per lane, lanes would run whole epochs apart: then each chunk is shared
        # row by row.
        self._by_chunk = feed.chunks.by_row or len(feed.chunks) >= 4 * OPEN_CHUNKS * lanes
        self._prepared = isinstance(feed.chunks, TokenStore)
        self._lane, self._lanes, self._seed = lane, lanes, seed
        self._next = lane if self._by_chunk else 0
        self._turn = 0
        self._backlog: deque[Unit] = deque()
        self._open: list[_OpenUnit] = []
        self._buffer: list[tuple[Reference, Located]] = []
        self._queue: deque[Draw] = deque()
        self._reached = 0
        self._rows_at_once = 16
        self._opened_without_example = 0

    def draw(self) -> Draw | None:
        """The next example; None where the source has left the mix after its epochs.

        Raises:
            DataError: a row or a chunk cannot be used, or a whole epoch held no example.
        """
        while not self._queue:
            if not (self._take_examples() if self._prepared else self._encode_rows()):
                return None
        draw = self._queue.popleft()
        self._reached = max(self._reached, draw.reference[0] + 1)
        return draw

    def _take_examples(self) -> bool:
        """Queue some examples of a store; whether there was any."""
        assert isinstance(self.feed.chunks, TokenStore)
        numbers = [unit.number for unit in islice(iter(self._next_unit, None), EXAMPLES_AT_ONCE)]
        if not numbers:
            return False
        self._opened_without_example = 0
        examples = self.feed.chunks.examples([self.feed.order.chunk(n) for n in numbers])
        self._queue += [
            Draw(self.source, (number, 0, 0), example)
            for number, example in zip(numbers, examples, strict=True)
        ]
        self.stats.rows += len(numbers)
        return True

    def _encode_rows(self) -> bool:
        """Tokenize some rows and queue their examples; whether there was any row."""
        encoder = self.feed.encoder
        rows: list[tuple[Reference, Located]] = []
        while len(rows) < self._rows_at_once and (row := self._take_row()):
            rows.append(row)
        if encoder is None:
            pieces = [[located[1]] for _, located in rows]
            self.stats.rows += len(rows)
        else:
            pieces = encoder.encode([located for _, located in rows])
        drawn = [
            Draw(self.source, (*reference[:2], piece), example)
            for (reference, _), examples in zip(rows, pieces, strict=True)
            for piece, example in enumerate(examples)
        ]
        if self.feed.order.shuffled and len(drawn) > len(rows):
            # Pieces of long rows: a batch of neighbours of one text is no random batch.
            for last in range(len(drawn) - 1, 0, -1):
                other = self._random_below(last + 1)
                drawn[last], drawn[other] = drawn[other], drawn[last]
        self._queue += drawn
        tokens = sum(len(draw.example) for draw in drawn)
        if tokens:
            self._opened_without_example = 0
        wanted = TOKENS_AT_ONCE * len(rows) // (tokens + 1)
        self._rows_at_once = max(1, min(MOST_ROWS_AT_ONCE, wanted))
        return bool(rows)

    def _take_row(self) -> tuple[Reference, Located] | None:
        """A row at random out of the buffer, which is filled up first."""
        while len(self._buffer) <= self.feed.buffer and (row := self._read_row()):
            self._buffer.append(row)
        if not self._buffer:
            return None
        chosen = self._random_below(len(self._buffer))
        self._buffer[chosen], self._buffer[-1] = self._buffer[-1], self._buffer[chosen]
        return self._buffer.pop()

    def _read_row(self) -> tuple[Reference, Located] | None:
        """The next row of one of the open chunks; None at the end of all epochs."""
        most = 1 if self.feed.chunks.by_row or not self.feed.buffer else OPEN_CHUNKS
        while True:
            while len(self._open) < most and self._may_open() and (unit := self._next_unit()):
                self._open.append(_OpenUnit(unit, self.feed))
            if not self._open:
                return None
            chosen = self._random_below(len(self._open))
            row = self._open[chosen].next_row()
            if row is not None:
                return row
            del self._open[chosen]

    def _may_open(self) -> bool:
        """Not a chunk of a later epoch than those that are read: its rows would come too early."""
        if not self._open:
            return True
        size = self.feed.order.size
        number = self._backlog[0].number if self._backlog else self._next
        return number // size <= min(unit.number for unit in self._open) // size

    def _random_below(self, limit: int) -> int:
        self._turn += 1
        return random_below(limit, self._seed, self._turn)

    def _next_unit(self) -> Unit | None:
        limit = self.feed.numbers if self.feed.numbers is not None else math.inf
        while self._backlog:
            if (unit := self._backlog.popleft()).number < limit:
                return unit
        if self._next >= limit:
            return None
        self._opened_without_example += 1
        if self._opened_without_example > len(self.feed.chunks) + OPEN_CHUNKS + MOST_ROWS_AT_ONCE:
            self._require_example()
        number = self._next
        self._next += self._lanes if self._by_chunk else 1
        if self._by_chunk:
            return Unit(number)
        # Every lane begins with the first row once, or that of small chunks would have more.
        return Unit(number, 0, self._lanes, (self._lane + number) % self._lanes)

    def _require_example(self) -> None:
        """A whole epoch was opened and gave no example: one must be among the rows that wait.

        Few rows in many chunks (a huge row is in hundreds) wait long for the buffer to be full.
        """
        encoder = self.feed.encoder
        waiting = [located for _, located in self._buffer]
        self._opened_without_example = 0
        if encoder is None:
            if not waiting:
                raise DataError(f"source {self.feed.name!r} holds no example.")
            return
        trial = encoder.fresh()
        if not any(made for _, made in encode_rows(trial, waiting)):
            # What was encoded before gave no example either.
            encoder.stats.add(trial.stats)
            encoder.bad += trial.bad[: BAD_ROWS_TOLD - len(encoder.bad)]
            raise DataError(encoder.why_empty())

    def state(self) -> StreamState:
        """Where it stands."""
        return StreamState(
            next=self._next,
            turn=self._turn,
            reached=self._reached,
            rows_at_once=self._rows_at_once,
            by_chunk=self._by_chunk,
            units=(*(unit.left() for unit in self._open), *self._backlog),
            open=len(self._open),
            buffer=tuple(reference for reference, _ in self._buffer),
            queue=tuple(draw.reference for draw in self._queue),
            stats=replace(self.stats),
        )

    def load(self, state: StreamState) -> None:
        """Go on behind what a state has given out; its rows are read again.

        Raises:
            DataError: the source no longer holds them.
        """
        self._turn, self._reached = state.turn, state.reached
        self._rows_at_once = state.rows_at_once
        self._next = state.next + (self._lane if state.dealt_anew and self._by_chunk else 0)
        self._open = [_OpenUnit(unit, self.feed) for unit in state.units[: state.open]]
        self._backlog = deque(state.units[state.open :])
        rows = _read_again(self.feed, state.buffer)
        self._buffer = [(reference, rows[reference[:2]]) for reference in state.buffer]
        self._queue = deque(self.recall(state.queue))
        for name, count in vars(state.stats).items():
            setattr(self.stats, name, count)

    def recall(self, references: Sequence[Reference]) -> list[Draw]:
        """The examples of references, read and tokenized again; they are not counted again.

        Raises:
            DataError: the source no longer holds one of them.
        """
        rows = _read_again(self.feed, references)
        located = list(rows.values())
        encoder = self.feed.encoder
        pieces = encoder.fresh().encode(located) if encoder else [[row] for _, row in located]
        examples = dict(zip(rows, pieces, strict=True))
        if lost := [ref for ref in references if ref[2] >= len(examples[ref[:2]])]:
            raise _changed(self.feed, *lost[0][:2])
        return [Draw(self.source, ref, examples[ref[:2]][ref[2]]) for ref in references]


class _OpenUnit:
    """A unit that is being read; the chunk is opened when its first row is asked for."""

    def __init__(self, unit: Unit, feed: Feed) -> None:
        self._unit, self._feed, self._taken = unit, feed, unit.taken
        self.number = unit.number
        self._rows: Iterator[Located] | None = None

    def next_row(self) -> tuple[Reference, Located] | None:
        """The next row of the unit, None at its end."""
        unit = self._unit
        if self._rows is None:
            chunk = self._feed.order.chunk(unit.number)
            self._rows = self._feed.chunks.read(chunk, self._taken)
        for located in self._rows:
            row = self._taken
            self._taken += 1
            if row % unit.stride == unit.offset:
                return (unit.number, row, 0), located
        return None

    def left(self) -> Unit:
        """What has not been read of it."""
        return replace(self._unit, taken=self._taken)


def _read_again(feed: Feed, references: Iterable[Reference]) -> dict[tuple[int, int], Located]:
    """(number, row) -> row, each chunk read once."""
    wanted: dict[int, set[int]] = {}
    for number, row, _ in references:
        wanted.setdefault(number, set()).add(row)
    found: dict[tuple[int, int], Located] = {}
    for number, rows in wanted.items():
        first, last = min(rows), max(rows)
        located = feed.chunks.read(feed.order.chunk(number), first)
        for row, item in zip(range(first, last + 1), located, strict=False):
            if row in rows:
                found[number, row] = item
        if missing := [row for row in rows if (number, row) not in found]:
            raise _changed(feed, number, missing[0])
    return found


def _changed(feed: Feed, number: int, row: int) -> DataError:
    return DataError(
        f"source {feed.name!r} has changed: row {row} of chunk {feed.order.chunk(number)} is no "
        "longer what the run was reading; restore the source, or start a new run."
    )
