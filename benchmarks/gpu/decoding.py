"""How many tokens per second does an expanded model write, beside the bytes that it must read?

Batch 1, one token at a time, in turn with its base (`benchmarks/decode.py`). The limit is what must
be read for a token at the rate of a copy within the device.

| how | what runs |
|---|---|
| `plain` | as transformers calls it: with small models Python takes longer than the device |
| `graph` | the same work in a static cache, captured once and replayed: the device alone |

On a CPU nothing is captured; the same calls run as they are.
"""

import argparse
from collections.abc import Callable
from typing import Any

import decode
import torch
from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import SIZES, make_base

__all__ = ["run"]

CASES: tuple[str, ...] = ("base", "{few}", "{many}", "{many}, alpha 0", "{many}, stack")
"""Cases of `decode.cases`; `few` is a quarter of the blocks, `many` half of them."""
PREFILLS, PAIRS, CONTEXT = 5, 30, 512
DRY_PAIRS, DRY_CONTEXT = 3, 16
COPY = 2**32
DRY_COPY = 2**20


@torch.inference_mode()
def run(options: argparse.Namespace, emit: Callable[[dict[str, Any]], None]) -> None:
    """Every case, first plain, then all as graphs: what may fail comes last."""
    device, config = Device(options.device), SIZES[options.size].config()
    rate = device.copy_rate(COPY if device.is_gpu else DRY_COPY)
    context, pairs = (CONTEXT, PAIRS) if device.is_gpu else (DRY_CONTEXT, DRY_PAIRS)
    base = make_base(config, device.torch).eval()
    ids_BT = torch.randint(config.vocab_size, (1, context), device=device.torch)
    layers = config.num_hidden_layers
    names = [name.format(few=layers // 4, many=layers // 2) for name in CASES]
    for how in ("plain", "graph"):
        for name in names:
            model = decode.make_model(base, decode.cases(layers)[name])
            call = plain if how == "plain" else graph
            row = {"how": how, "blocks": name, "copy_tb_per_second": rate / 1e12}
            try:
                emit(row | told(call(base, model, ids_BT, pairs, device), rate))
            except Exception as error:  # Whatever it is, the other cases are to be measured.
                emit({**row, "note": f"failed: {type(error).__name__}: {error}"})
            del model
            device.clear()


def told(found: dict[str, Any], rate: float) -> dict[str, Any]:
    """The numbers of a case: tokens per second, and shares of their limit."""
    numbers: dict[str, Any] = {}
    for which in ("base", "expanded"):
        seconds = found["decode"][which]
        least = sum(found["bytes"][which].values()) / rate
        numbers[f"{which}_tokens_per_second"] = 1 / seconds
        numbers[f"{which}_of_limit"] = least / seconds
    return {
        **numbers,
        "bytes_ratio": found["limit"],
        "to_the_limit": decode.shown(found["to the limit"]),
    }


def plain(base: Any, model: Any, ids_BT: Any, pairs: int, device: Device) -> dict[str, Any]:
    """As `decode.py` measures it, by the clock of the device."""
    return decode.compare(base, model, ids_BT, PREFILLS, pairs, device.now)


def graph(base: Any, model: Any, ids_BT: Any, pairs: int, device: Device) -> dict[str, Any]:
    """The same, each token by a replay."""
    made = [Static(one, ids_BT, pairs + SPARE, device) for one in (base, model)]
    counted = [one.count() for one in made]
    calls = [one.captured() for one in made]
    limit = sum(counted[1].values()) / sum(counted[0].values())
    times = decode.in_turn(calls[0], calls[1], pairs, device.now)
    return {
        "bytes": {"base": counted[0], "expanded": counted[1]},
        "limit": limit,
        "decode": times,
        "to the limit": [round(ratio / limit, 4) for ratio in times["ratios"]],
    }


SPARE = 8
"""Tokens that a static cache has room for beside those that are timed: warm-up, capture."""


class Static:
    """A model in the middle of a text, all of whose tensors stay where they are.

    Args:
        model: a base or an expanded model.
        ids_BT: the prompt.
        more: tokens that may follow.
        device: where they are.
    """

    def __init__(self, model: Any, ids_BT: torch.Tensor, more: int, device: Device) -> None:
        from transformers import StaticCache

        self.model, self.device = model, device
        capacity = ids_BT.shape[1] + more
        config = model.config.get_text_config(decoder=True)
        self.cache = StaticCache(config=config, max_cache_len=capacity)
        model(input_ids=ids_BT, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        place = {"device": device.torch}
        self.inputs = {
            "input_ids": ids_BT[:, :1].clone(),
            "position_ids": torch.full((1, 1), ids_BT.shape[1], **place),
            # All of the cache, so that nothing has to be made, or asked, for each token.
            "attention_mask": torch.ones(1, 1, 1, capacity, dtype=torch.bool, **place),
        }

    def token(self) -> None:
        """Read one more token."""
        self.model(**self.inputs, past_key_values=self.cache, use_cache=True)

    def count(self) -> dict[str, int]:
        """Bytes that a token reads: weights, and the whole cache."""
        with decode.Reads(self.model) as reads:
            self.token()
        layers = [one for one in self.cache.layers if one.is_initialized]
        return {"weights": reads.bytes, "kv": sum(2 * one.keys.nbytes for one in layers)}

    def captured(self) -> Callable[[], None]:
        """A call that does what `token` does, without Python between its kernels."""
        if not self.device.is_gpu:
            return self.token
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.token()
        torch.cuda.current_stream().wait_stream(stream)
        found = torch.cuda.CUDAGraph()
        with torch.cuda.graph(found):
            self.token()
        return found.replay
