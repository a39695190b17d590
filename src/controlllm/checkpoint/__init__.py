"""Floor 2: what is kept on disk, and how it comes back.

training  The checkpoint that a run goes on from
mirror    Runs on remote storage: written there, and copied here
models    Any saved form becomes a model: found, looked at, loaded, exported
"""

from controlllm.checkpoint.models.export import export, require_free
from controlllm.checkpoint.models.inspection import Inspection, inspect_folder
from controlllm.checkpoint.models.loading import (
    LoadOptions,
    find_tokenizer,
    load_model,
    load_tokenizer,
)
from controlllm.checkpoint.models.locate import Kind, Location, locate
from controlllm.checkpoint.training.rng import capture_rng, restore_rng
from controlllm.checkpoint.training.state import (
    TrainingState,
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    mark_best,
    newest_checkpoint,
    resolve_checkpoint,
    save_checkpoint,
)
from controlllm.checkpoint.training.tensors import describe_model, restore_tensors, trained_tensors

__all__ = [
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
