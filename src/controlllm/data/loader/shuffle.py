"""In which order the blocks of a source come, epoch after epoch, in constant memory.

A *number* counts blocks over all epochs: number = epoch * size + position. Every number is computed
by itself, so 20 million rows cost as much as twenty, and any lane can take any number.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "InOrder",
    "Order",
    "Permutation",
    "Phased",
    "Shuffled",
    "order_of",
    "random_below",
    "seed_of",
]

_ROUNDS = 6
_CHUNK = 1024
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


class Permutation:
    """A random permutation of 0 .. size-1 that is computed, not stored.

    A Feistel network permutes the next power of four; what falls outside is sent through again
    until it falls inside ("cycle walking", Black and Rogaway 2002), which keeps it a permutation.

    Args:
        size: how many elements.
        seed: numbers that the permutation depends on.
    """

    def __init__(self, size: int, seed: Sequence[int]) -> None:
        self.size = size
        self._half = np.uint64(max((size - 1).bit_length() + 1, 2) // 2)
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The elements at `positions` (any shape), each 0 <= position < size."""
        values = self._encrypt(positions.astype(np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return left << self._half | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele et al. 2014), on 64-bit arrays."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def random_below(limit: int, seed: int, turn: int) -> int:
    """A number 0 <= x < limit, of `seed` and `turn` alone, so that a counter is its state."""
    value = (seed + turn * _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return (value ^ (value >> 31)) % limit


def seed_of(*numbers: int) -> int:
    """One 64-bit seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class Order(ABC):
    """Which block each number is.

    Args:
        size: blocks of the source.
    """

    shuffled = True
    """Whether what is read comes in a random order; if not, as it lies."""

    def __init__(self, size: int) -> None:
        self.size = size

    def block(self, number: int) -> int:
        """The block that `number` (0, 1, 2, ... over all epochs) stands for."""
        epoch, position = divmod(number, self.size)
        return self.at(epoch, position)

    @abstractmethod
    def at(self, epoch: int, position: int) -> int:
        """The block at a position of an epoch."""


class InOrder(Order):
    """Block after block, as they lie."""

    shuffled = False

    def at(self, epoch: int, position: int) -> int:
        """The block of that position."""
        return position


class Shuffled(Order):
    """Another random permutation of all blocks in every epoch.

    Args:
        size: blocks of the source.
        seed: numbers that the permutations depend on.
    """

    def __init__(self, size: int, seed: Sequence[int]) -> None:
        super().__init__(size)
        self._seed = list(seed)
        self._chunks: dict[tuple[int, int], NDArray[np.int64]] = {}

    def at(self, epoch: int, position: int) -> int:
        """The block at a position of the epoch's permutation."""
        chunk, offset = divmod(position, _CHUNK)
        values = self._chunks.get((epoch, chunk))
        if values is None:
            values = self._compute(epoch, chunk)
        return int(values[offset])

    def _compute(self, epoch: int, chunk: int) -> NDArray[np.int64]:
        """Positions are asked for nearly in order, so a few chunks of them are kept."""
        start = chunk * _CHUNK
        positions = np.arange(start, min(start + _CHUNK, self.size))
        values = Permutation(self.size, [*self._seed, epoch])(positions)
        if len(self._chunks) >= 4:
            del self._chunks[next(iter(self._chunks))]
        self._chunks[epoch, chunk] = values
        return values


class Phased(Order):
    """Phase after phase (easy rows first), each shuffled in itself, anew in every epoch.

    Args:
        sizes: how many blocks each phase has; the blocks lie in the order of the phases.
        seed: numbers that the permutations depend on.
    """

    def __init__(self, sizes: Sequence[int], seed: Sequence[int]) -> None:
        super().__init__(sum(sizes))
        self._starts = np.cumsum([0, *(size for size in sizes if size)])
        self._orders = [
            Shuffled(size, [*seed, number]) for number, size in enumerate(filter(None, sizes))
        ]

    def at(self, epoch: int, position: int) -> int:
        """The block at a position: of its phase, the one that the phase's permutation says."""
        phase = int(np.searchsorted(self._starts, position, side="right")) - 1
        start = int(self._starts[phase])
        return start + self._orders[phase].at(epoch, position - start)


def order_of(
    size: int, shuffle: bool, seed: Sequence[int], phases: Sequence[int] | None = None
) -> Order:
    """The order that a config asks for.

    Args:
        size: blocks of the source.
        shuffle: whether they are, or come as they lie.
        seed: numbers that the permutations depend on.
        phases: how many blocks each phase has, where they come in phases.
    """
    if not shuffle:
        return InOrder(size)
    return Phased(phases, seed) if phases is not None else Shuffled(size, seed)
