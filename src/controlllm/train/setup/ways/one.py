"""`one`: the same copies go on; the stage before is a frozen copy of what training changes."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint import load_model
from controlllm.expansion.files.lineage import folded_parent
from controlllm.train.config.run_config import RunConfig
from controlllm.train.setup.copies import frozen_copy
from controlllm.train.setup.ways.contract import BASE, Earlier, Going, Stage, key_of
from controlllm.train.setup.ways.loaded import all_stages

__all__ = ["ONE"]


def _load(earlier: Earlier, run: RunConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The stage before, at its dial."""
    return load_model(earlier.location.path, earlier.options)


def _stages(
    model: PreTrainedModel, earlier: Earlier, run: RunConfig, shares: bool
) -> tuple[Stage, ...]:
    record = earlier.parents[-1]
    copy = frozen_copy(model, shares)
    last = Stage(str(record["name"]), earlier.run_folder, copy=copy, key=key_of(earlier.parents))
    folded = folded_parent(earlier.parents[:-1])
    own = BASE if folded is None else str(earlier.parents[folded]["name"])
    return all_stages(model, earlier, shares, own, last)


ONE = Going(_load, _stages)
