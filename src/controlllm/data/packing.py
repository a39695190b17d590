"""Step 6: which waiting rows go together into a slot. Pure: lengths in, positions out."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

__all__ = ["choose_for_slot", "fill_slots"]


def choose_for_slot(lengths: Sequence[int], capacity: int) -> list[int]:
    """Choose rows for one slot: by age while they fit, then always the longest that fits the rest.

    Age first keeps the order nearly as drawn: no row waits for ever, and what waits stays a fair
    sample of the mix. (Longest first packs no tighter, and lets short rows pile up.)

    Args:
        lengths: tokens of each waiting row, oldest first; each at most `capacity`.
        capacity: tokens of the slot.

    Returns:
        Positions in `lengths`, in the order of the slot; the first is always 0.
    """
    filled = list(accumulate(lengths))
    by_age = bisect_right(filled, capacity)
    chosen = list(range(by_age))
    room = capacity - filled[by_age - 1]
    # Stable: of equally long rows the older one goes first.
    for position in sorted(range(by_age, len(lengths)), key=lambda i: -lengths[i]):
        if lengths[position] <= room:
            chosen.append(position)
            room -= lengths[position]
    return chosen


def fill_slots(lengths: Sequence[int], capacity: int, lookahead: int) -> Iterator[list[int]]:
    """Pack a finite sequence: each position goes into exactly one slot.

    Args:
        lengths: tokens of each row; each at most `capacity`.
        capacity: tokens of a slot.
        lookahead: how many rows may be chosen from.
    """
    waiting: list[int] = []
    upcoming = iter(range(len(lengths)))
    while True:
        waiting += [
            position for _, position in zip(range(lookahead - len(waiting)), upcoming, strict=False)
        ]
        if not waiting:
            return
        chosen = choose_for_slot([lengths[position] for position in waiting], capacity)
        yield [waiting[i] for i in chosen]
        taken = set(chosen)
        waiting = [position for i, position in enumerate(waiting) if i not in taken]
