"""`joint`: from the base, on the data of all stages together: the upper bound, no continuing."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint import load_model
from controlllm.train.config.run_config import RunConfig
from controlllm.train.setup.ways.contract import BASE, Earlier, Going, Stage

__all__ = ["JOINT"]


def _load(earlier: Earlier, run: RunConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    assert run.model.model_name_or_path is not None  # `settled_run` has filled it in
    return load_model(run.model.model_name_or_path, run.model)


def _stages(
    model: PreTrainedModel, earlier: Earlier, run: RunConfig, shares: bool
) -> tuple[Stage, ...]:
    return (Stage(BASE),)


JOINT = Going(_load, _stages)
