"""The held-out sets of `calibrate`: those of the run, and of the stages before it."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from controlllm.checkpoint import KINDS, kind_in, locate
from controlllm.cli.kit.sets import config_of, run_defaults
from controlllm.common.errors import CheckpointError, ConfigError, DataError
from controlllm.common.settings import value_at
from controlllm.data import SourceConfig
from controlllm.expansion.files.records import read_sidecar_config
from controlllm.train.config.run_config import RunConfig

__all__ = ["calibrate_defaults"]

log = logging.getLogger(__name__)


def calibrate_defaults(given: dict[str, Any], trusts: bool) -> dict[str, Any]:
    """Values of `data.*` as `run_defaults`, and of `own_text.*` but for places of this machine.

    The run's file of prompts is taken where it lies in its folder, or is trusted; else it is told.

    To `data.learn` comes what the earlier stages held out that the dials of this one turn, so that
    nothing of theirs is given up because nobody looks at it.
    """
    defaults = run_defaults(given, trusts)
    if not defaults:
        return {}
    defaults["data"]["learn"] += map(asdict, _earlier_learn(given, defaults["data"]["learn"]))
    own = asdict(RunConfig.from_dict(config_of(given)).own_text)
    own["prompts"] = _prompts(given, own["prompts"], trusts)
    return defaults | {"own_text": own | {"cache_dir": None}}


def _prompts(given: dict[str, Any], prompts: str | None, trusts: bool) -> str | None:
    """The run's own file of prompts, if it may be read."""
    from controlllm.train.setup.ways.contract import run_folder_of
    from controlllm.train.setup.ways.earlier import lies_inside

    if prompts is None or trusts or value_at(given, "own_text.prompts") is not None:
        return prompts
    location = locate(str(given["model"]), value_at(given, "load.storage_options"))
    if lies_inside(prompts, run_folder_of(location)):
        return prompts
    log.warning(
        "own_text.prompts=%r of the run is no file in its folder: it is left out unless you repeat "
        "it on the command line, or trust this run folder: --trust_config true.",
        prompts,
    )
    return None


def _earlier_learn(given: dict[str, Any], own: Sequence[dict[str, Any]]) -> Iterator[SourceConfig]:
    """The learn sets of the stages after the last folded one; what is not there is told."""
    from controlllm.checkpoint import find_parent
    from controlllm.data.loader.open_source import open_source
    from controlllm.expansion.files.lineage import folded_parent
    from controlllm.train.setup.ways.contract import run_folder_of
    from controlllm.train.setup.ways.earlier import earlier_data, same_rows

    folder = Path(locate(str(given["model"]), value_at(given, "load.storage_options")).path)
    if kind_in(folder) is not KINDS["control"]:
        return
    parents = read_sidecar_config(folder).get("parents", [])
    folded = folded_parent(parents)
    for parent in parents[0 if folded is None else folded + 1 :]:
        try:
            if (data := earlier_data(run_folder_of(find_parent(parent, folder)))) is None:
                continue
            for source in data.learn:
                if not any(same_rows(SourceConfig(**one), source) for one in own):
                    open_source(source, data)
                    yield replace(source, name=f"{parent['name']}/{source.name}")
        except (CheckpointError, ConfigError, DataError) as error:
            log.warning(
                "What the stage %s held out is not measured, as it cannot be read: %s",
                parent["name"],
                error,
            )
