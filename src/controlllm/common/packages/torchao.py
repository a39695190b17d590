"""The optional package torchao: asked for in words, and imported without its own."""

import importlib
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.quiet import quiet_imports

__all__ = ["require_torchao"]


def require_torchao(module: str, setting: str) -> Any:
    """Import a module of torchao.

    Raises:
        ConfigError: torchao is not installed.
    """
    try:
        with quiet_imports():
            return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{setting} needs torchao, which cannot be imported ({error}): "
            "`pip install 'controlllm[torchao]'`, or leave the setting out."
        ) from error
