"""KV caches that outlive a request, so that the next turn of a conversation is read from its end.

A cache belongs to a voice (sidecars, alphas, adapters) and to the tokens it has read: keys and
values of another alpha are other numbers. It is never shared between two requests that run: what
one takes, no other finds.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from controlllm.inference.engine.protocol import Voice

__all__ = ["CacheStore", "bytes_of"]

LEAST_SHARED = 16
"""Fewer common tokens are read again rather than copied."""


class CacheStore:
    """The caches of finished requests; the one used longest ago goes first.

    Args:
        most_bytes: of all of them together.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._kept: OrderedDict[tuple[Voice, tuple[int, ...]], Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, voice: Voice, ids: Sequence[int], cache: Any) -> None:
        """Keep the cache of these tokens, if it fits at all."""
        size = bytes_of(cache)
        if size > self.most_bytes:
            return
        key = (voice, tuple(ids))
        self._drop(key)
        self._kept[key] = cache
        self.bytes += size
        while self.bytes > self.most_bytes:
            self._drop(next(iter(self._kept)))

    def take(self, voice: Voice, ids: Sequence[int]) -> tuple[Any, int]:
        """A cache of the prompt's longest known beginning, to be used up: (cache, tokens).

        A whole cache is handed over; of one that goes on otherwise its beginning is copied. At
        least the last token of the prompt is left to read.
        """
        key, shared = self._longest(voice, tuple(ids[:-1]))
        if key is None:
            return None, 0
        if shared == len(key[1]):
            cache = self._kept[key]
            self._drop(key)
            return cache, shared
        if shared < LEAST_SHARED or not _can_crop(self._kept[key]):
            return None, 0
        self._kept.move_to_end(key)
        return _beginning(self._kept[key], len(key[1]) - shared), shared

    def clear(self) -> None:
        """Drop them all."""
        self._kept.clear()
        self.bytes = 0

    def _longest(
        self, voice: Voice, ids: tuple[int, ...]
    ) -> tuple[tuple[Voice, tuple[int, ...]] | None, int]:
        best, most = None, 0
        for key in self._kept:
            if key[0] == voice and (shared := _shared(key[1], ids)) > most:
                best, most = key, shared
        return best, most

    def _drop(self, key: tuple[Voice, tuple[int, ...]]) -> None:
        cache = self._kept.pop(key, None)
        if cache is not None:
            self.bytes -= bytes_of(cache)


def bytes_of(cache: Any) -> int:
    """The memory that a cache's tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(cache))


def _tensors(cache: Any) -> Iterator[Tensor]:
    for layer in cache.layers:
        for value in vars(layer).values():
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, Tensor):
                    yield tensor


def _shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many tokens two texts have in common from the beginning."""
    for place, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return place
    return min(len(a), len(b))


def _can_crop(cache: Any) -> bool:
    """Whether every layer holds all its tokens: neither a sliding window nor a recurrent state."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _beginning(cache: Any, without: int) -> Any:
    """A copy of a cache without its last tokens."""
    cut = copy.deepcopy(cache)
    cut.crop(-without)
    return cut
