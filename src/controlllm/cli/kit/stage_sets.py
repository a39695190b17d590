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

    To `data.learn` comes what the earlier stages held out that the dials of this one turn, so that
    nothing of theirs is given up because nobody looks at it.
    """
    defaults = run_defaults(given, trusts)
    if not defaults:
        return {}
    defaults["data"]["learn"] += map(asdict, _earlier_learn(given, defaults["data"]["learn"]))
    own = asdict(RunConfig.from_dict(config_of(given)).own_text)
    return defaults | {"own_text": own | {"prompts": None, "cache_dir": None}}


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
