"""Floor 2: what is kept on disk, and how it comes back.

| module | what it holds |
|---|---|
| `state` | the training checkpoint: write, list, verify, load, prune, best |
| `manifest`, `codec`, `rng` | its completion mark, its encoding without pickles, random states |
| `tensors` | what of a model is trained, what model it is, and putting the tensors back |
| `loading` | any folder or name to a model and its tokenizer |
| `export` | full, sidecar and collapsed forms |
"""

from controlllm.checkpoint.rng import capture_rng, restore_rng
from controlllm.checkpoint.state import (
    TrainingState,
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    mark_best,
    newest_checkpoint,
    resolve_checkpoint,
    save_checkpoint,
)

__all__ = [
    "TrainingState",
    "best_checkpoint",
    "capture_rng",
    "list_checkpoints",
    "load_checkpoint",
    "mark_best",
    "newest_checkpoint",
    "resolve_checkpoint",
    "restore_rng",
    "save_checkpoint",
]
