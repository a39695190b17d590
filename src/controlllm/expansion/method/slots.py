"""Which branch wrote which slot of a KV cache, so that a gap is never read.

A branch that was skipped (the copy at alpha 0, the frozen block at alpha 1, a sidecar that is off)
has written no keys and values for those tokens. A cache remembers which slots are whole; a forward
pass that would read another one is refused. So is one that would go on where a pass has failed.

Only the copy runs at alpha 1: it then writes the frozen block's slot. Caches are asked for their
length and their masks by the first slots, which so are always written.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from controlllm.common.errors import ModelError

__all__ = ["Slots", "Writers", "check_cache", "move_slot", "note_cache", "spoil_cache"]

Slots = frozenset[tuple[int, int]]
"""Pairs of a slot and the branch that writes it, which is named by its own slot."""
_MARK = "_controlllm_slots"
_SPOILED: Slots = frozenset({(-1, -1)})


def check_cache(cache: Any, needed: Slots) -> None:
    """Check before a forward pass that its branches wrote all of a cache (ModelError)."""
    whole = getattr(cache, _MARK, None)
    if whole is None or (needed <= whole and whole != _SPOILED):
        return
    if int(cache.get_seq_length()) == 0:  # It was reset.
        delattr(cache, _MARK)
        return
    if whole == _SPOILED:
        raise ModelError(
            "A forward pass that was writing into this KV cache has failed, so that some layers "
            "may hold tokens that others do not. Begin with a new cache (past_key_values=None)."
        )
    raise ModelError(
        f"This KV cache has gaps: {len(needed - whole)} of the branches that run now did not run "
        "for the tokens it holds (at alpha 0 no copy runs, at alpha 1 only copies may, and a "
        "sidecar that is off does not). Keep a sequence at what it began with, or begin with a new "
        "cache (past_key_values=None)."
    )


def note_cache(cache: Any, written: Slots) -> None:
    """Note after a forward pass which slots of its cache are whole."""
    if hasattr(cache, "get_seq_length"):
        setattr(cache, _MARK, getattr(cache, _MARK, written) & written)


def spoil_cache(cache: Any) -> None:
    """Note that a forward pass failed, perhaps when some layers had written to its cache."""
    if hasattr(cache, "get_seq_length"):
        setattr(cache, _MARK, _SPOILED)


class Writers:
    """The modules of a branch that write a slot of the cache: found once, not at each token.

    They are looked for again where one was replaced since, or has another slot.
    """

    def __init__(self) -> None:
        self._found: list[tuple[str, nn.Module]] = []

    def of(self, branch: nn.Module, slot: int) -> list[nn.Module]:
        """Those of this branch and slot, as they are now."""
        if not (self._found and all(_writes(branch, *one, slot) for one in self._found)):
            self._found = [
                (name, module)
                for name, module in branch.named_modules()
                if getattr(module, "layer_idx", None) == slot
            ]
        return [module for _, module in self._found]


def _writes(branch: nn.Module, name: str, module: nn.Module, slot: int) -> bool:
    """Whether this module still stands in the branch by this name, and writes this slot."""
    try:
        stands = branch.get_submodule(name) is module
    except AttributeError:
        return False
    return stands and getattr(module, "layer_idx", None) == slot


@contextmanager
def move_slot(modules: Sequence[Any], new: int) -> Iterator[None]:
    """Inside, modules of one slot read and write another one of the cache."""
    old = [module.layer_idx for module in modules]
    for module in modules:
        module.layer_idx = new
    try:
        yield
    finally:
        for module, slot in zip(modules, old, strict=True):
            module.layer_idx = slot
