"""The optional package torchao: asked for in words, and imported without its own."""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from controlllm.common.errors import ConfigError

__all__ = ["quiet_torchao", "require_torchao"]

_LOUD = ("torchao", "torch.utils._pytree", "bitsandbytes")


def require_torchao(module: str, setting: str) -> Any:
    """Import a module of torchao.

    Raises:
        ConfigError: torchao is not installed.
    """
    try:
        with quiet_torchao():
            return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{setting} needs torchao, which cannot be imported ({error}): "
            "`pip install 'controlllm[torchao]'`, or leave the setting out."
        ) from error


@contextmanager
def quiet_torchao() -> Iterator[None]:
    """Let torchao (and bitsandbytes) say nothing when first imported, by us or by others.

    They tell on each start which of their kernels this machine cannot load; we call none of them.
    """
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
