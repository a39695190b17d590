"""Floor 2: what is kept on disk, and how it comes back.

training  The checkpoint that a run goes on from
mirror    Runs on remote storage: written there, and copied here
models    Any saved form becomes a model: found, looked at, loaded, exported
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.checkpoint.mirror.copies import local_copy
    from controlllm.checkpoint.mirror.fetch import fetch_files, fetch_newest
    from controlllm.checkpoint.mirror.remote import RemoteRun
    from controlllm.checkpoint.mirror.upload import Uploader
    from controlllm.checkpoint.models.apart import saved_apart
    from controlllm.checkpoint.models.export.forms import FORMS, Form, make_form, rules_of_forms
    from controlllm.checkpoint.models.export.writing import export, require_free
    from controlllm.checkpoint.models.inspection import inspect_folder
    from controlllm.checkpoint.models.load_options import DTYPES, LoadOptions
    from controlllm.checkpoint.models.loading import (
        find_tokenizer,
        load_model,
        load_stage,
        load_tokenizer,
    )
    from controlllm.checkpoint.models.locate import Kind, Location, locate, locate_recorded
    from controlllm.checkpoint.models.named import load_named
    from controlllm.checkpoint.models.parents import find_parent, locate_parent, record_stage
    from controlllm.checkpoint.training.checkpoints import (
        best_checkpoint,
        checkpoint_step,
        list_checkpoints,
        mark_best,
        newest_checkpoint,
        resolve_checkpoint,
    )
    from controlllm.checkpoint.training.codec import capture_rng, restore_rng
    from controlllm.checkpoint.training.kinds import (
        describe_model,
        trained_tensors,
    )
    from controlllm.checkpoint.training.saved import KINDS, kind_in
    from controlllm.checkpoint.training.shards import fill_tensors
    from controlllm.checkpoint.training.state import TrainingState, load_checkpoint, save_checkpoint
    from controlllm.checkpoint.training.writer import CheckpointWriter

__all__ = [
    "DTYPES",
    "FORMS",
    "KINDS",
    "CheckpointWriter",
    "Form",
    "Kind",
    "LoadOptions",
    "Location",
    "RemoteRun",
    "TrainingState",
    "Uploader",
    "best_checkpoint",
    "capture_rng",
    "checkpoint_step",
    "describe_model",
    "export",
    "fetch_files",
    "fetch_newest",
    "fill_tensors",
    "find_parent",
    "find_tokenizer",
    "inspect_folder",
    "kind_in",
    "list_checkpoints",
    "load_checkpoint",
    "load_model",
    "load_named",
    "load_stage",
    "load_tokenizer",
    "local_copy",
    "locate",
    "locate_parent",
    "locate_recorded",
    "make_form",
    "mark_best",
    "newest_checkpoint",
    "record_stage",
    "require_free",
    "resolve_checkpoint",
    "restore_rng",
    "rules_of_forms",
    "save_checkpoint",
    "saved_apart",
    "trained_tensors",
]

__getattr__, __dir__ = lazy_names(__name__)
