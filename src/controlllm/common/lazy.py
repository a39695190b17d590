"""Lazy public faces of packages (PEP 562): a name's module is imported when the name is first used.

A public name must differ from its module's: importing a submodule binds its name in the package.
"""

import importlib
from collections.abc import Callable
from typing import Any

from controlllm.common.quiet import quiet_imports

__all__ = ["lazy_names"]


def lazy_names(
    package: str, homes: dict[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make `__getattr__` and `__dir__` for a package.

    Returns:
        The two functions, to be assigned at module level.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with quiet_imports():
            return getattr(importlib.import_module(homes[name]), name)

    def __dir__() -> list[str]:
        return sorted(homes)

    return __getattr__, __dir__
