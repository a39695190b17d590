"""Names that an expansion's settings use, and that users' own code may add to.

Ours are reserved: they are known before the modules that register them, which need torch.
"""

from typing import Any

from controlllm.common.registry import Registry

__all__ = ["DIVERGENCES", "INTERPOLATORS"]

INTERPOLATORS: Registry[type[Any]] = Registry(
    "interpolator",
    ("lerp", "dlerp", "dlerpin", "slerp", "moe", "prog", "proj"),
    home="controlllm.expansion.method.interpolators",
)
"""Subclasses of `Interpolator`."""

DIVERGENCES: Registry[Any] = Registry(
    "divergence",
    ("mse", "nmse", "cosine", "dot", "attention"),
    home="controlllm.expansion.method.divergence",
)
"""Functions of the type `Divergence`."""
