"""Where the copies go: pure functions from a config and a depth to a plan."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.expansion.method.expansion_config import ExpansionConfig

__all__ = ["ENDS", "BlockPlan", "check_layers", "default_layers", "extended_lists", "plan_blocks"]


ENDS = -1
"""The key of the expanded ends in a dial by layer."""


@dataclass(frozen=True)
class BlockPlan:
    """One expanded position.

    Attributes:
        layer: l, the index of the pretrained block.
        kind: "concat" (the copy runs beside the block) or "stack" (after it).
        cache_index: L + k, the expanded block's own slot in the KV cache.
    """

    layer: int
    kind: str
    cache_index: int


def default_layers(num_layers: int, num_blocks: int) -> list[int]:
    """The first n layers l with (l + 1) divisible by s = max(L // n, 1). Source: docs/method.md §2.

    >>> default_layers(32, 8)
    [3, 7, 11, 15, 19, 23, 27, 31]
    """
    stride = max(num_layers // num_blocks, 1)
    return [layer for layer in range(num_layers) if (layer + 1) % stride == 0][:num_blocks]


def plan_blocks(config: ExpansionConfig, num_layers: int) -> tuple[BlockPlan, ...]:
    """Decide every expanded position of a decoder with `num_layers` = L blocks.

    Raises:
        ConfigError: for more blocks than layers, a layer out of range, or an odd number of blocks
            in a hybrid.
    """
    layers = None if config.layers is None else sorted(config.layers)
    if bad := [layer for layer in config.layers or () if not 0 <= layer < num_layers]:
        allowed = f"the model has layers 0 to {num_layers - 1}"
        raise ConfigError(f"layers={config.layers}: {bad} out of range; {allowed}.")
    if layers is None:
        quarter = max(num_layers // 4, 1)  # the authors' 8 of 32
        if config.structure == "hybrid":
            quarter += quarter % 2
        num_blocks = config.num_blocks or quarter
        if num_blocks > num_layers:
            raise ConfigError(
                f"num_blocks={num_blocks}, but the model has only {num_layers} layers; "
                f"allowed: 1 to {num_layers}."
            )
        layers = default_layers(num_layers, num_blocks)
    if config.structure == "hybrid" and len(layers) % 2:
        raise ConfigError(
            f"structure='hybrid' alternates stack and concat and needs an even number of blocks, "
            f"got {len(layers)}: {layers}."
        )
    kinds = ["stack", "concat"] if config.structure == "hybrid" else [config.structure]
    return tuple(
        BlockPlan(layer, kinds[k % len(kinds)], num_layers + k) for k, layer in enumerate(layers)
    )


def check_layers(alpha: Iterable[int], expanded: Iterable[int]) -> None:
    """Check that a dial by layer names expanded layers only (ConfigError)."""
    unknown = sorted(set(alpha) - set(expanded), key=str)
    if unknown:
        raise ConfigError(f"alpha for layers {unknown}, but expanded are {sorted(expanded)}.")


def extended_lists(
    config: dict[str, Any], plan: Sequence[BlockPlan], num_layers: int
) -> dict[str, list[Any]]:
    """Per-layer lists of a config (`layer_types`...) with the expanded blocks' entries appended.

    Args:
        config: the decoder's config as a dict.
        plan: the expanded positions, in order.
        num_layers: L; only lists of exactly this length with "layer" in their name are per-layer
            lists.
    """
    return {
        key: [*values, *(values[block.layer] for block in plan)]
        for key, values in config.items()
        if "layer" in key and isinstance(values, list) and len(values) == num_layers
    }
