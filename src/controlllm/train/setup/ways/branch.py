"""`branch`: a new sidecar beside the earlier ones, which are frozen at their dials.

The stage before is the model with the new dial off, bit for bit; at all dials 0 it is the base.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint import load_model
from controlllm.common.errors import ConfigError
from controlllm.expansion import BranchedForCausalLM, ControlLLMForCausalLM, expand_beside
from controlllm.expansion.files.lineage import (
    dial_beside,
    dial_of,
    folded_parent,
    parents_beside,
    stage_name,
)
from controlllm.train.config.run_config import RunConfig
from controlllm.train.setup.ways.contract import BASE, Earlier, Going, Inside, Stage, key_of
from controlllm.train.setup.ways.loaded import all_stages

__all__ = ["BRANCH"]


def _load(earlier: Earlier, run: RunConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The stage before at its dial, and a new sidecar beside what it has.

    Raises:
        ConfigError: the run has adapters, or processes that would cut matrices or be DeepSpeed's.
        ModelError: what the stage before has cannot stand beside another sidecar.
    """
    for setting, holds in {
        f"peft.type={run.peft.type}": run.adapters,
        f"parallel.tensor_size={run.parallel.tensor_size}": run.parallel.tensor_size > 1,
        f"parallel.strategy={run.parallel.strategy}": run.parallel.way.by_deepspeed,
    }.items():
        if holds:
            raise ConfigError(
                f"{setting} has no place with continue_by=branch; leave it out, or take "
                "continue_by=one."
            )
    model, tokenizer = load_model(earlier.location.path, earlier.options)
    assert isinstance(model, ControlLLMForCausalLM)  # `find_earlier` has looked
    name = stage_name(Path(run.training.output_dir), earlier.names)
    own = None if model.sidecars else earlier.names[-1]
    return expand_beside(model, name, run.expansion, earlier=own), tokenizer


def _stages(
    model: PreTrainedModel, earlier: Earlier, run: RunConfig, shares: bool
) -> tuple[Stage, ...]:
    key = key_of(earlier.parents)
    last = Stage(earlier.names[-1], earlier.run_folder, inside=_before, key=key)
    folded = folded_parent(earlier.parents)
    own = BASE if folded is None else str(earlier.parents[folded]["name"])
    return all_stages(model, earlier, shares, own, last, _standing)


def _before(model: BranchedForCausalLM) -> Any:
    return model.disable_branch()


def _standing(
    model: PreTrainedModel, record: Mapping[str, Any], older: Sequence[Mapping[str, Any]]
) -> Inside | None:
    """A stage whose sidecar is in the model, and `older` ones where it was learned beside them."""
    assert isinstance(model, BranchedForCausalLM)  # `_load` has made it
    if record["name"] not in model.sidecars:
        return None
    dials = {parent["name"]: dial_beside(parent) for parent in parents_beside(older)}
    dials[record["name"]] = dial_of(record)
    return lambda model: model.standing(dials)


BRANCH = Going(_load, _stages)
