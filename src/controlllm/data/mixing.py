"""Step 5: several sources -> one endless, seeded, resumable sequence of draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.data.batches import REHEARSAL, REPLAY, TRAIN
from controlllm.data.tokenized import TokenizedSource

__all__ = ["Draw", "Mixer", "Stream", "share_out"]

Draw: TypeAlias = tuple[int, int]
"""(stream, number): the `number`-th draw from a stream, counted from 0 over all epochs."""


@dataclass(frozen=True)
class Stream:
    """A source that takes part in a mix."""

    source: TokenizedSource
    """Its examples."""

    origin: int
    """`TRAIN`, `REPLAY` or `REHEARSAL`."""

    share: float
    """Its share of the mix; shares add up to 1."""


def share_out(
    train: Sequence[tuple[TokenizedSource, float]],
    replay: Sequence[tuple[TokenizedSource, float]],
    replay_share: float,
    rehearsal: tuple[TokenizedSource, float] | None,
) -> list[Stream]:
    """Turn weights into shares of the whole mix.

    Args:
        train: (source, weight) of what is to be learned.
        replay: (source, weight) of the old domain.
        replay_share: share of all replay sources together.
        rehearsal: (source, share) written by the base model, if any.

    Raises:
        ConfigError: there is no train source, or nothing is left for them.
    """
    rehearsal_share = rehearsal[1] if rehearsal else 0.0
    if not train:
        raise ConfigError("data.train=[] names no source; there is nothing to learn from.")
    left = 1 - replay_share - rehearsal_share
    if left <= 0 or (rehearsal and rehearsal_share <= 0):
        raise ConfigError(
            f"shares replay={replay_share!r} and rehearsal={rehearsal_share!r} must be above 0 "
            "where used and leave something for train."
        )
    streams = _weighted(train, TRAIN, left) + _weighted(replay, REPLAY, replay_share)
    return streams + ([Stream(rehearsal[0], REHEARSAL, rehearsal_share)] if rehearsal else [])


def _weighted(
    sources: Sequence[tuple[TokenizedSource, float]], origin: int, share: float
) -> list[Stream]:
    total = sum(weight for _, weight in sources)
    return [Stream(source, origin, share * weight / total) for source, weight in sources]


class Mixer:
    """Draws from streams so that each holds its share at every moment, up to one example.

    No chance is involved in which stream is next: it is the one furthest behind its share. Within a
    stream each epoch is a new permutation, given by (seed, stream, epoch). So a few counters are
    the whole state.

    Args:
        streams: what to draw from.
        seed: of the permutations.
        by: what shares count, `tokens` or `rows`.
    """

    def __init__(self, streams: Sequence[Stream], seed: int, by: str) -> None:
        self.streams = list(streams)
        self.seed = seed
        self.by = by
        self.drawn = [0] * len(self.streams)
        self.given = [0] * len(self.streams)
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def draw(self) -> Draw:
        """The next draw."""
        stream = min(range(len(self.streams)), key=lambda s: self.given[s] / self.streams[s].share)
        draw = (stream, self.drawn[stream])
        self.drawn[stream] += 1
        self.given[stream] += self.length(draw) if self.by == "tokens" else 1
        return draw

    def index(self, draw: Draw) -> int:
        """Which example of its source a draw is."""
        stream, number = draw
        epoch, position = divmod(number, len(self.streams[stream].source))
        return int(self._order(stream, epoch)[position])

    def length(self, draw: Draw) -> int:
        """Tokens of the drawn example."""
        return int(self.streams[draw[0]].source.lengths[self.index(draw)])

    def _order(self, stream: int, epoch: int) -> NDArray[np.int64]:
        key = (stream, epoch)
        if key not in self._orders:
            # A row may wait in the packer over an epoch's end, so the epoch before is kept, and
            # none older.
            self._orders = {
                (s, e): order
                for (s, e), order in self._orders.items()
                if s != stream or e >= epoch - 1
            }
            seeds = np.random.SeedSequence([self.seed, stream, epoch])
            size = len(self.streams[stream].source)
            self._orders[key] = np.random.Generator(np.random.PCG64(seeds)).permutation(size)
        return self._orders[key]

    def fingerprint(self) -> str:
        """Changes when the sequence of draws would: sources, shares, seed, or what shares count."""
        digest = blake2b(repr((self.seed, self.by)).encode(), digest_size=16)
        for stream in self.streams:
            digest.update(repr((stream.origin, stream.share, stream.source.fingerprint)).encode())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Counters, as JSON takes them."""
        return {"fingerprint": self.fingerprint(), "drawn": [*self.drawn], "given": [*self.given]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the draws that a state has counted.

        Raises:
            CheckpointError: the state was written with other sources, shares or seed.
        """
        if state.get("fingerprint") != self.fingerprint():
            raise CheckpointError(
                "the data state belongs to other data: a source, a share, the seed or the "
                "tokenizer has changed, so the run cannot go on exactly; "
                "restore them, or start a new run."
            )
        self.drawn, self.given = list(state["drawn"]), list(state["given"])
