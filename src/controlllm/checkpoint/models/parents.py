"""Stages that a sidecar was trained after, found again; those beside it are put on its base.

The maker of a sidecar wrote where they lay. So such a place leads to this machine's disk only,
to a folder or to what its user has fetched from the Hub, and nothing there is loaded but the stage
whose digest is recorded.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from controlllm.checkpoint.models.apart import Apart, joined_parts, saved_apart
from controlllm.checkpoint.models.load_options import LoadOptions
from controlllm.checkpoint.models.locate import (
    Kind,
    Location,
    is_hub_name,
    locate,
)
from controlllm.checkpoint.training.kinds import HANDLERS
from controlllm.checkpoint.training.manifest import verify_manifest
from controlllm.checkpoint.training.saved import KINDS
from controlllm.checkpoint.training.shards import map_joined
from controlllm.common.errors import CheckpointError
from controlllm.expansion.files.lineage import (
    check_parent,
    dial_beside,
    parent_record,
    parents_beside,
    stage_name,
)
from controlllm.expansion.files.places import places_of
from controlllm.expansion.files.records import FOLD, read_sidecar_config
from controlllm.expansion.hub.branches import BranchedForCausalLM, load_branches

__all__ = ["find_parent", "locate_parent", "put_on", "record_stage"]


def locate_parent(record: Mapping[str, Any], child: Path) -> Location:
    """Where a sidecar lies that may be a stage before another one; it is not read.

    Args:
        record: one of the `parents` of that other one.
        child: the folder of that other one.

    Raises:
        CheckpointError: there is none.
    """
    places = list(dict.fromkeys(places_of(record["place"], child)))
    location = _here(places)
    if location is None:
        location = _fetched(record, child, places)
    apart = saved_apart(location)
    if apart is None or apart.kind is not KINDS["control"]:
        raise CheckpointError(
            f"The sidecar {child} was trained after the stage {record['name']!r}, but "
            f"{location.path} is {location.kind.value}, not a sidecar. Put that stage back there."
        )
    return location


def find_parent(
    record: Mapping[str, Any], child: Path, options: LoadOptions | None = None
) -> Location:
    """Where a stage lies that a sidecar records: where it lay, or beside the sidecar.

    Args:
        record: one of the sidecar's `parents`.
        child: the sidecar's folder.
        options: `scratch_dir` is used.

    Raises:
        CheckpointError: it is in none of these places, or another one is.
    """
    location = locate_parent(record, child)
    if location.kind is Kind.CHECKPOINT:
        verify_manifest(Path(location.path))
    apart = saved_apart(location)
    assert apart is not None  # `locate_parent` has looked
    with joined_parts(location, options or LoadOptions()) as joined:
        tensors = None if joined is None else map_joined(joined)
        check_parent(record, apart.folder, f"The sidecar {child}", tensors)
    return location


def record_stage(
    location: Location, way: str, names: list[str], options: LoadOptions
) -> dict[str, Any]:
    """What is recorded of a stage that is gone on from; see `lineage.parent_record`.

    Raises:
        CheckpointError: it is broken.
    """
    apart = saved_apart(location, options.revision)
    assert apart is not None  # who goes on from it has looked
    with joined_parts(location, options) as joined:
        tensors = None if joined is None else map_joined(joined)
        place = location.path
        if location.kind is not Kind.HUB and is_hub_name(place):
            place = f"./{place}"  # Who looks for it later asks no server for a folder of ours.
        return parent_record(apart.folder, place, way, names, tensors)


def put_on(
    base: PreTrainedModel, apart: Apart, tensors: dict[str, Tensor] | None, options: LoadOptions
) -> PreTrainedModel:
    """Put what was saved apart on its base; a sidecar beside those that it was trained beside.

    Args:
        base: taken over.
        apart: what was saved.
        tensors: its tensors, if they are read already.
        options: how it is loaded.

    Raises:
        CheckpointError, ModelError: it does not fit the base, or one beside it is not there.
    """
    if apart.kind is KINDS["control"]:
        parents = read_sidecar_config(apart.folder).get("parents", [])
        if beside := parents_beside(parents):
            return _put_beside(base, apart, parents, beside, tensors, options)
    handler = HANDLERS[apart.kind.name]
    assert handler.put_on is not None  # `saved_apart` has looked
    return handler.put_on(base, apart.folder, tensors, options.check_base)


def _put_beside(
    base: PreTrainedModel,
    apart: Apart,
    parents: Sequence[Mapping[str, Any]],
    beside: Sequence[Mapping[str, Any]],
    tensors: dict[str, Tensor] | None,
    options: LoadOptions,
) -> BranchedForCausalLM:
    """A sidecar of these `parents` on its base, and some of them `beside` it, at their dials."""
    own = stage_name(apart.folder, [parent["name"] for parent in parents])
    folders, read = {}, {}
    with ExitStack() as stack:
        for parent in beside:
            place = find_parent(parent, apart.folder, options)
            found = saved_apart(place)
            assert found is not None  # `find_parent` has looked
            folders[parent["name"]] = found.folder
            joined = stack.enter_context(joined_parts(place, options))
            if joined is not None:
                read[parent["name"]] = map_joined(joined)
        folders[own] = apart.folder
        if tensors is not None:
            read[own] = tensors
        dials = {parent["name"]: dial_beside(parent) for parent in beside}
        return load_branches(base, folders, dials, options.check_base, read)


def _here(places: Sequence[Path]) -> Location | None:
    """The first of these folders in which a model lies."""
    for place in places:
        with suppress(CheckpointError):  # an empty folder hides none of the places after it
            if place.is_dir():
                return locate(place)
    return None


def _fetched(record: Mapping[str, Any], child: Path, places: list[Path]) -> Location:
    """The stage in the Hub's cache on this machine; CheckpointError says where it was looked for.

    The Hub itself is not asked: the name is that of whoever made the sidecar.
    """
    from huggingface_hub import snapshot_download

    name, why = record["place"], None
    looked = ", ".join(map(str, places)) or "nowhere, as its place is an address"
    fetch = ""
    if is_hub_name(name):
        try:
            return locate(snapshot_download(name, local_files_only=True))
        except (OSError, ValueError, CheckpointError) as error:
            why = error
        looked += ", and among what was fetched from the Hub"
        fetch = f" If it is {name} on the Hub, and you trust that: hf download {name}."
    folded = ", or give the base that it was folded into as `base`"
    raise CheckpointError(
        f"{child} was trained after the stage {record['name']!r}, which is missing: it was looked "
        f"for in {looked}. Put it in one of these places"
        f"{folded if record['way'] == FOLD else ''}.{fetch}"
    ) from why
