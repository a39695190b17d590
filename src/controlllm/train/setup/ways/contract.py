"""What a way to go on from an earlier run does, and how one is registered.

A way of `all_data` (`joint`) goes on from no model: settled, it is any other run from the base.

```
run file --settled_run--> RunConfig      what need not be said again is filled in
        --Going.load----> model          what the method is put on; its tokenizer
        --Going.stages--> Stage, ...     the base and each earlier stage: who computes it
```
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint import Kind, LoadOptions, Location
from controlllm.common.adapters import as_base
from controlllm.common.errors import CheckpointError
from controlllm.common.registry import Registry
from controlllm.evaluate import Reference
from controlllm.evaluate.own_text import OWN_TEXT, Writer, as_it_is
from controlllm.expansion.files.lineage import dial_beside, parents_beside
from controlllm.expansion.files.places import lies_in_run
from controlllm.expansion.files.records import BASE
from controlllm.train.config.run_config import RunConfig
from controlllm.train.config.ways import WAYS, Way

__all__ = [
    "BASE",
    "GOINGS",
    "Earlier",
    "Found",
    "Going",
    "Inside",
    "Stage",
    "key_of",
    "register_way",
    "run_folder_of",
]

Inside = Callable[[Any], AbstractContextManager[Any]]
"""Gives a context in which a model computes an earlier stage."""


@dataclass(frozen=True)
class Found:
    """An earlier stage on this machine, and what it records of those before it."""

    location: Location
    older: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Earlier:
    """What a run goes on from, found and read; nothing is loaded.

    Attributes:
        location: the checkpoint or sidecar.
        folder: its files on this machine.
        parents: what is recorded of all stages before the run, the oldest first; the last one is
            what lies in `folder`.
        options: how it is loaded.
        found: the stages before that one, by name; or why one is not there.
    """

    location: Location
    folder: Path
    parents: tuple[dict[str, Any], ...]
    options: LoadOptions
    found: Mapping[str, Found | CheckpointError]

    @property
    def names(self) -> tuple[str, ...]:
        """The stages before the run, the base first."""
        return (BASE, *(str(parent["name"]) for parent in self.parents))

    @property
    def run_folder(self) -> Path:
        """Where the run's own files lie, if it is one: its config, its own text."""
        return run_folder_of(self.location)


def key_of(parents: Sequence[Mapping[str, Any]]) -> str:
    """What tells the last of these stages, which is not folded, from all others.

    Its digest, and its dial; and where the dials of those stand that it was learned beside.
    """
    beside = [dial_beside(parent) for parent in parents_beside(parents[:-1])]
    told = [parents[-1]["digest"], parents[-1].get("dial"), *beside]
    return " ".join(map(str, told))


def run_folder_of(location: Location) -> Path:
    """The run folder of a checkpoint, or of a sidecar in it; of anything else the folder itself."""
    path = Path(location.path)
    inside = location.kind is Kind.CHECKPOINT or lies_in_run(path)
    return path.parent if inside else path


@dataclass(frozen=True)
class Stage:
    """The base, or an earlier run, and who computes it as it was.

    Attributes:
        name: `base`, or as its run's folder.
        folder: where its files lie; None of the base, or where that is not known.
        copy: a frozen model of its own; None = the model that trains, inside `inside`.
        inside: makes that model compute the stage, by default its base.
        key: tells it from all others; None = the fingerprint of its base does.
    """

    name: str
    folder: Path | None = None
    copy: PreTrainedModel | None = None
    inside: Inside = as_base
    key: str | None = None

    def writer(self, model: PreTrainedModel) -> Writer:
        """Who writes its own text, before anything trains."""
        who = model if self.copy is None else self.copy
        if self.key is None:
            return Writer.base(who)
        return Writer(who, self.key, self.inside if self.copy is None else as_it_is)

    def folder_of_text(self, own: Path) -> Path:
        """Where what it writes is kept: beside its run, or in `own` where that is not writable."""
        if self.folder is None or not os.access(self.folder, os.W_OK):
            return own
        return self.folder / OWN_TEXT

    def reference(self, model: PreTrainedModel) -> Reference:
        """Who computes the stage beside the model that trains."""
        return Reference(model, self.copy, self.inside)


@dataclass(frozen=True)
class Going:
    """What a way does.

    Attributes:
        load: the model that the method is put on, on the CPU, and its tokenizer.
        stages: from that model (in its place, not yet expanded or trained), the run, and whether
            frozen weights may be in common: the base and all earlier stages, the oldest first,
            each as it was. A stage that is not there any more is left out, and told.
    """

    load: Callable[[Earlier, RunConfig], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    stages: Callable[[PreTrainedModel, Earlier, RunConfig, bool], tuple[Stage, ...]]


GOINGS: Registry[Going] = Registry(
    "continue_by", ("one", "branch", "fold"), home="controlllm.train.setup.ways.going"
)
"""What each of `WAYS` does that goes on from a model, by its name."""


def register_way(name: str, way: Way, going: Going) -> None:
    """Register a way: its facts, and what it does (ConfigError: the name is taken)."""
    WAYS.register(name)(way)
    GOINGS.register(name)(going)
