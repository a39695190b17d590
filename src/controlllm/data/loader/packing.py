"""Step 7a: which waiting rows go together into a slot. Pure: lengths in, positions out."""

from collections.abc import Iterator, Sequence

__all__ = ["choose_for_slot", "fill_slots", "window_is_full"]

CHOICE = 8192
"""Tokens of a slot that are chosen for the best sum; what a slot has beyond them goes by age."""


def window_is_full(rows: int, tokens: int, capacity: int, lookahead: int) -> bool:
    """Whether enough rows wait to choose a slot from: `lookahead` of them, and two slots' worth.

    The second keeps very short rows from leaving slots empty.
    """
    return rows >= lookahead and tokens >= 2 * capacity


def choose_for_slot(lengths: Sequence[int], capacity: int) -> list[int]:
    """Choose the rows that fill a slot best; of equally good choices the one with the oldest rows.

    The oldest row is always in, so no row waits for ever. Among the others every sum is looked at
    (subset sums, as bits of one large integer: bit s is 1 where some of the rows have s tokens).

    Args:
        lengths: tokens of each waiting row, oldest first; each at most `capacity`.
        capacity: tokens of the slot.

    Returns:
        Positions in `lengths`, rising; the first is always 0.
    """
    by_age, room = _take_by_age(lengths, capacity)
    rest = lengths[by_age:]
    sums = _sums_of_last(rest, room)
    missing = sums[0].bit_length() - 1
    chosen = list(range(by_age))
    for position, length in enumerate(rest):
        if not missing:
            break
        if length <= missing and sums[position + 1] >> (missing - length) & 1:
            chosen.append(by_age + position)
            missing -= length
    return chosen


def _take_by_age(lengths: Sequence[int], capacity: int) -> tuple[int, int]:
    """How many of the oldest rows are in without a choice, and the room that they leave."""
    count, room = 1, capacity - lengths[0]
    while count < len(lengths) and room - lengths[count] >= CHOICE:
        room -= lengths[count]
        count += 1
    return count, room


def _sums_of_last(lengths: Sequence[int], limit: int) -> list[int]:
    """For each position the sums up to `limit` that the rows from there on can have, as bits."""
    mask = (1 << (limit + 1)) - 1
    sums = [1]
    for length in reversed(lengths):
        last = sums[-1]
        sums.append((last | last << length) & mask if length <= limit else last)
    return sums[::-1]


def fill_slots(lengths: Sequence[int], capacity: int, lookahead: int) -> Iterator[list[int]]:
    """Pack a finite sequence: each position goes into exactly one slot.

    Args:
        lengths: tokens of each row; each at most `capacity`.
        capacity: tokens of a slot.
        lookahead: how many rows may be chosen from, at least.
    """
    waiting: list[int] = []
    tokens = upcoming = 0
    while waiting or upcoming < len(lengths):
        while upcoming < len(lengths) and not window_is_full(
            len(waiting), tokens, capacity, lookahead
        ):
            waiting.append(upcoming)
            tokens += lengths[upcoming]
            upcoming += 1
        chosen = choose_for_slot([lengths[position] for position in waiting], capacity)
        slot = [waiting[i] for i in chosen]
        yield slot
        tokens -= sum(lengths[position] for position in slot)
        taken = set(slot)
        waiting = [position for position in waiting if position not in taken]
