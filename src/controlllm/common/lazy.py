"""Lazy public faces of packages (PEP 562): a name's module is imported when the name is first used.

    if TYPE_CHECKING:
        from controlllm.train.run import train  # read by type checkers, and by `lazy_names`

    __getattr__, __dir__ = lazy_names(__name__)

A public name must differ from its module's: importing a submodule binds its name in the package.
"""

import ast
import importlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from controlllm.common.quiet import quiet_imports

__all__ = ["lazy_names"]


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make `__getattr__` and `__dir__` for a package, by what it imports for type checkers."""

    @cache
    def homes() -> dict[str, str]:
        found: dict[str, str] = {}
        source = Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                for line in node.body:
                    if isinstance(line, ast.ImportFrom) and line.module is not None:
                        found |= {alias.name: line.module for alias in line.names}
        return found

    def __getattr__(name: str) -> Any:
        if name not in homes():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with quiet_imports():
            return getattr(importlib.import_module(homes()[name]), name)

    def __dir__() -> list[str]:
        return sorted(homes())

    return __getattr__, __dir__
