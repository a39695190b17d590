"""The names that a stranger's folder may use: plain ones, for files that hold data and not code.

Listings, manifests and `best.json` of a folder elsewhere are read through these functions, so that
whatever stands there, nothing outside the folder that is being filled gets written or removed.
"""

import re
from pathlib import PurePosixPath

__all__ = ["DATA_PATTERNS", "holds_data", "is_checkpoint", "is_plain"]

_CHECKPOINT = re.compile(r"checkpoint-[0-9]{1,18}")
_SUFFIXES = (
    *(".safetensors", ".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".jinja"),
    *(".bpe", ".codes", ".model", ".spm", ".tiktoken"),
)
DATA_PATTERNS = [f"*{suffix}" for suffix in _SUFFIXES]
"""What is fetched, from anywhere: weights, configs, tokenizers, templates, records. No pickles and
no code: a module at a place that can be foretold would be one import away from running."""


def is_plain(name: object) -> bool:
    """Whether `name` can only be that of one visible file or folder within its folder."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 200
        and not name.startswith(".")
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
    )


def is_checkpoint(name: object) -> bool:
    """Whether `name` is `checkpoint-<n>` and nothing more."""
    return isinstance(name, str) and _CHECKPOINT.fullmatch(name) is not None


def holds_data(name: str) -> bool:
    """Whether a file of this name is one that models, tokenizers and runs consist of."""
    return PurePosixPath(name).suffix.lower() in _SUFFIXES
