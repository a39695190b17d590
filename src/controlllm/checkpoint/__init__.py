"""Floor 2: what is kept on disk, and how it comes back.

training  The checkpoint that a run goes on from
mirror    Runs on remote storage: written there, and copied here
models    Any saved form becomes a model: found, looked at, loaded, exported
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.checkpoint.models.export import export, require_free
    from controlllm.checkpoint.models.inspection import Inspection, inspect_folder
    from controlllm.checkpoint.models.loading import (
        LoadOptions,
        find_tokenizer,
        load_model,
        load_tokenizer,
    )
    from controlllm.checkpoint.models.locate import Kind, Location, locate
    from controlllm.checkpoint.models.whole import DTYPES
    from controlllm.checkpoint.training.checkpoints import (
        best_checkpoint,
        list_checkpoints,
        mark_best,
        newest_checkpoint,
        resolve_checkpoint,
    )
    from controlllm.checkpoint.training.codec import capture_rng, restore_rng
    from controlllm.checkpoint.training.kinds import (
        describe_model,
        restore_tensors,
        trained_tensors,
    )
    from controlllm.checkpoint.training.state import TrainingState, load_checkpoint, save_checkpoint

__all__ = [
    "DTYPES",
    "Inspection",
    "Kind",
    "LoadOptions",
    "Location",
    "TrainingState",
    "best_checkpoint",
    "capture_rng",
    "describe_model",
    "export",
    "find_tokenizer",
    "inspect_folder",
    "list_checkpoints",
    "load_checkpoint",
    "load_model",
    "load_tokenizer",
    "locate",
    "mark_best",
    "newest_checkpoint",
    "require_free",
    "resolve_checkpoint",
    "restore_rng",
    "restore_tensors",
    "save_checkpoint",
    "trained_tensors",
]

_HOMES = {
    "DTYPES": "models.whole",
    "Inspection": "models.inspection",
    "Kind": "models.locate",
    "LoadOptions": "models.loading",
    "Location": "models.locate",
    "TrainingState": "training.state",
    "best_checkpoint": "training.checkpoints",
    "capture_rng": "training.codec",
    "describe_model": "training.kinds",
    "export": "models.export",
    "find_tokenizer": "models.loading",
    "inspect_folder": "models.inspection",
    "list_checkpoints": "training.checkpoints",
    "load_checkpoint": "training.state",
    "load_model": "models.loading",
    "load_tokenizer": "models.loading",
    "locate": "models.locate",
    "mark_best": "training.checkpoints",
    "newest_checkpoint": "training.checkpoints",
    "require_free": "models.export",
    "resolve_checkpoint": "training.checkpoints",
    "restore_rng": "training.codec",
    "restore_tensors": "training.kinds",
    "save_checkpoint": "training.state",
    "trained_tensors": "training.kinds",
}
__getattr__, __dir__ = lazy_names(__name__, {n: f"{__name__}.{home}" for n, home in _HOMES.items()})
