"""The models of earlier stages, as they were: loaded again, with weights in common."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from controlllm.checkpoint import load_model, load_stage
from controlllm.common.adapters import as_base
from controlllm.common.errors import CheckpointError
from controlllm.expansion import collapse
from controlllm.expansion.files.records import FOLD
from controlllm.train.setup.copies import share_equal
from controlllm.train.setup.ways.contract import Earlier, Inside, Stage, key_of, run_folder_of

__all__ = ["all_stages"]

log = logging.getLogger(__name__)

Standing = Callable[
    [PreTrainedModel, Mapping[str, Any], Sequence[Mapping[str, Any]]], Inside | None
]
"""Inside what a model computes the stage of a record, with the older ones that this one names."""


def all_stages(
    model: PreTrainedModel,
    earlier: Earlier,
    shares: bool,
    own: str,
    last: Stage,
    standing: Standing = lambda model, record, older: None,
) -> tuple[Stage, ...]:
    """The base and every stage before a run, the oldest first; those that are gone are told.

    Args:
        model: what trains.
        earlier: what it goes on from.
        shares: whether frozen weights may be in common with it.
        own: the stage that the model computes with its expansion off.
        last: the stage that the run goes on from.
        standing: inside what the model computes another stage of this record, which went on from
            `older` ones as its own files record them; None = it does not.
    """
    stages = []
    for name, record in zip(earlier.names, (None, *earlier.parents), strict=True):
        if name == last.name:
            stages.append(last)
            continue
        try:
            stages.append(_stage(name, record, model, earlier, shares, own, standing))
        except CheckpointError as error:
            log.warning(
                "The stage %r is neither measured nor rehearsed, as it cannot be loaded: %s",
                name,
                error,
            )
    return tuple(stages)


def _stage(
    name: str,
    record: Mapping[str, Any] | None,
    model: PreTrainedModel,
    earlier: Earlier,
    shares: bool,
    own: str,
    standing: Standing,
) -> Stage:
    options = replace(earlier.options, device="cpu")
    folder = key = None
    inside: Inside | None = as_base if name == own else None
    if record is not None:
        found = earlier.found[name]
        if isinstance(found, CheckpointError):
            raise found
        location, folder = found.location, run_folder_of(found.location)
        # Folded, it is the base of what came next.
        key = None if record["way"] == FOLD else key_of([*found.older, record])
        inside = inside or standing(model, record, found.older)
    if inside is not None:
        return Stage(name, folder, inside=inside, key=key)
    log.info("Loading the stage %s", name)
    if record is None:
        assert options.base is not None  # `find_earlier` has filled it in
        copy = load_model(options.base, replace(options, base=None))[0]
    else:
        stage = load_stage(record, location, options)
        copy = collapse(stage, inplace=True) if record["way"] == FOLD else stage
    copy.requires_grad_(False).eval()
    if shares:
        share_equal(copy, model)
    return Stage(name, folder, copy=copy, key=key)
