"""Users' own formats, sources, filters, hooks, collators, metrics: by entry point or by file."""

import os
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from controlllm.common.errors import ConfigError, ControlLLMError
from controlllm.common.storage.lock import cache_root
from controlllm.data.cache.cache_key import file_digest, forget_file
from controlllm.data.config.data_config import DataConfig
from controlllm.data.sources.files import digest

__all__ = ["ENTRY_POINT_GROUPS", "load_plugins"]

ENTRY_POINT_GROUPS = ("controlllm.formats", "controlllm.sources")
"""Groups under which installed packages announce modules that register things."""


def load_plugins(config: DataConfig) -> None:
    """Run every plugin once per process, so that what it registers is known by name.

    Raises:
        ConfigError: a plugin is missing or fails, or was edited since it was loaded; says which
            and why.
    """
    _load_entry_points()
    for path in config.plugins:
        file = Path(path).expanduser().resolve()
        if not (file.is_file() and file.suffix == ".py"):
            raise ConfigError(f"data.plugins: {file} is not a Python file.")
        _refuse_fetched(file, config)
        _load_file(file)
        # A cache must not be made by one version of a plugin under the key of another.
        if digest(file.read_bytes()) != file_digest(str(file)):
            raise ConfigError(
                f"data.plugins: {file} was edited after this process had loaded it; start again."
            )


def _refuse_fetched(file: Path, config: DataConfig) -> None:
    """Refuse a file below a cache: what lies there may have come from somebody else."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    own = cache_root()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    for folder in (own, home, config.cache_dir, HF_HOME, HF_HUB_CACHE):
        if folder and file.is_relative_to(Path(folder).expanduser().resolve()):
            raise ConfigError(
                f"data.plugins: {file} lies in a cache, {folder}, whose files come from elsewhere; "
                "copy what you trust to a folder of your own."
            )


@cache
def _load_entry_points() -> None:
    for group in ENTRY_POINT_GROUPS:
        for point in entry_points(group=group):
            try:
                point.load()
            # Whatever somebody else's module raises means that it cannot be used.
            except Exception as error:
                raise ConfigError(
                    f"the plugin {point.name!r} ({point.value}, entry point {group}) fails: "
                    f"{error!r}. Mend or uninstall it."
                ) from error


@cache
def _load_file(path: Path) -> None:
    # The same name in every process, so that what the module defines can be pickled into workers.
    name = f"controlllm_plugin_{path.stem}_{digest(str(path))}"
    content = path.read_bytes()
    file_digest(str(path), content)
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(path)
    try:
        # Not by the loader: it may run what it compiled before, of a file edited a moment ago.
        exec(compile(content, str(path), "exec"), vars(module))
    except Exception as error:
        del sys.modules[name]
        forget_file(str(path))
        if isinstance(error, ControlLLMError):
            raise
        raise ConfigError(f"data.plugins: {path} fails: {error!r}.") from error
