"""Lines of other packages that concern nobody here: left out around our own imports and calls.

| logger | line | why |
|---|---|---|
| `torchao` | `Failed to load ....so` | kernels for other machines, none of which we call |
| `torchao.kernel.intmm` | `Detected no triton` | said on every machine without Triton |
| `torch.utils._pytree` | `Calling register_constant() on Enum ...` | said of torchao's own code |
| `bitsandbytes....ops` | `Failed to load CPU ...` | a faster kernel that is not installed |
| `DeepSpeed` | `Setting accelerator to CPU` | said on every machine without a GPU |

Only these lines are left out, and only inside: what users import themselves speaks as ever.
"""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from controlllm.common.errors import ConfigError

__all__ = ["quiet_bars", "quiet_imports", "require_package"]

_LINES = {
    "torchao": "Failed to load ",
    "torchao.kernel.intmm": "Detected no triton",
    "torch.utils._pytree": "Calling register_constant() on Enum subclasses",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU ",
    "DeepSpeed": "Setting accelerator to CPU",
}


def _lacks(text: str, record: logging.LogRecord) -> bool:
    return text not in record.getMessage()


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Inside, packages that are imported for the first time leave out the lines above."""
    filters = [(logging.getLogger(name), partial(_lacks, text)) for name, text in _LINES.items()]
    for logger, one in filters:
        logger.addFilter(one)
    try:
        yield
    finally:
        for logger, one in filters:
            logger.removeFilter(one)


def require_package(module: str, setting: str) -> Any:
    """Import a module of an optional package, whose extra has the package's name.

    Raises:
        ConfigError: it is not installed; `setting` is what needs it.
    """
    package = module.partition(".")[0]
    try:
        with quiet_imports():
            return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{setting} needs {package}, which cannot be imported ({error}): "
            f"`pip install 'controlllm[{package}]'`, or leave it out."
        ) from error


@contextmanager
def quiet_bars(on_terminals: bool = False) -> Iterator[None]:
    """Inside, transformers draws no progress bars where there is no terminal to draw them on.

    With `on_terminals` it draws none there, either.
    """
    from transformers.utils import logging as bars

    drawn = bars.is_progress_bar_enabled() and (on_terminals or not sys.stderr.isatty())
    if drawn:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            bars.enable_progress_bar()
