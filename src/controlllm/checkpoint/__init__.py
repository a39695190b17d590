"""Floor 2: what is kept on disk, and how it comes back.

| module | what it holds |
|---|---|
| `state` | the training checkpoint: write, list, verify, load, prune, best |
| `shards`, `writer`, `optimizer` | tensors in parts, written by all processes in the background |
| `manifest`, `codec`, `rng` | its completion mark, its encoding without pickles, random states |
| `kinds` | the kinds of models that are saved, and the files of each |
| `tensors` | what of a model is trained, what model it is, and putting the tensors back |
| `locate`, `loading` | any folder or name to a model and its tokenizer |
| `remote`, `upload`, `fetch` | run folders elsewhere (HDFS, S3, ...), to there and from there |
| `copies` | what is loaded from elsewhere, on the disk of this machine |
| `inspection` | what a saved model consists of, without loading it |
| `export` | full, sidecar, adapter and collapsed forms |
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
