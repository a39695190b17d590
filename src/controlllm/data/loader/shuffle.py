"""In which order the chunks of a source come, epoch after epoch, in constant memory.

A *number* counts chunks over all epochs: number = epoch * size + position. Every number is computed
by itself, so 20 million rows cost as much as twenty, and any lane can take any number.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Order", "Phased", "Shuffled", "order_of", "permute", "random_below", "seed_of"]

_ROUNDS = 6
_PART = 1024
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def permute(positions: NDArray[np.int64], size: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """What stands at `positions` (any shape) of a random permutation of 0 .. size-1.

    It is computed, not stored: a Feistel network permutes the next power of four; what falls
    outside is sent through again until it falls inside ("cycle walking", Black and Rogaway 2002),
    which keeps it a permutation.
    """
    half = np.uint64(max((size - 1).bit_length() + 1, 2) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)

    def encrypt(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> half, values & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        return left << half | right

    values = encrypt(positions.astype(np.uint64))
    while (outside := values >= size).any():
        values[outside] = encrypt(values[outside])
    return values.astype(np.int64)


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


class Order:
    """Which chunk each number is: as they lie, if no subclass shuffles them."""

    shuffled = False
    """Whether what is read comes in a random order."""

    def __init__(self, size: int) -> None:
        self.size = size

    def chunk(self, number: int) -> int:
        """The chunk that `number` (0, 1, 2, ... over all epochs) stands for."""
        epoch, position = divmod(number, self.size)
        return self.at(epoch, position)

    def at(self, epoch: int, position: int) -> int:
        """The chunk at a position of an epoch."""
        return position


class Shuffled(Order):
    """Another random permutation of all chunks in every epoch."""

    shuffled = True

    def __init__(self, size: int, seed: Sequence[int]) -> None:
        super().__init__(size)
        self._seed = list(seed)
        self._parts: dict[tuple[int, int], NDArray[np.int64]] = {}

    def at(self, epoch: int, position: int) -> int:
        """The chunk at a position of the epoch's permutation."""
        part, offset = divmod(position, _PART)
        values = self._parts.get((epoch, part))
        if values is None:  # Positions are asked for nearly in order: a few parts are kept.
            positions = np.arange(part * _PART, min((part + 1) * _PART, self.size))
            values = permute(positions, self.size, [*self._seed, epoch])
            if len(self._parts) >= 4:
                del self._parts[next(iter(self._parts))]
            self._parts[epoch, part] = values
        return int(values[offset])


class Phased(Order):
    """Phase after phase (easy rows first), each shuffled in itself, anew in every epoch.

    The chunks lie in the order of the phases.
    """

    shuffled = True

    def __init__(self, sizes: Sequence[int], seed: Sequence[int]) -> None:
        super().__init__(sum(sizes))
        self._starts = np.cumsum([0, *(size for size in sizes if size)])
        self._orders = [
            Shuffled(size, [*seed, number]) for number, size in enumerate(filter(None, sizes))
        ]

    def at(self, epoch: int, position: int) -> int:
        """The chunk at a position: of its phase, the one that the phase's permutation says."""
        phase = int(np.searchsorted(self._starts, position, side="right")) - 1
        start = int(self._starts[phase])
        return start + self._orders[phase].at(epoch, position - start)


def order_of(
    size: int, shuffle: bool, seed: Sequence[int], phases: Sequence[int] | None = None
) -> Order:
    """The order that a config asks for."""
    if not shuffle:
        return Order(size)
    return Phased(phases, seed) if phases is not None else Shuffled(size, seed)
