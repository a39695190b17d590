"""`fold`: the stage before is collapsed at its dial, and gets new copies; alpha 0 is that stage."""

from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint import load_model
from controlllm.common.errors import ConfigError
from controlllm.expansion import ControlLLMForCausalLM, collapse
from controlllm.train.config.run_config import RunConfig
from controlllm.train.setup.ways.contract import Earlier, Going, Stage
from controlllm.train.setup.ways.loaded import all_stages

__all__ = ["FOLD"]


def _load(earlier: Earlier, run: RunConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base that the stage before is folded into.

    Raises:
        ConfigError: it is to be quantised while it is loaded.
        ModelError: it has no collapsed form.
    """
    if earlier.options.quantize_base is not None:
        raise ConfigError(
            f"model.quantize_base={earlier.options.quantize_base}: weights in few bits cannot be "
            "folded; leave it out, or take continue_by=one."
        )
    # On the CPU, as whoever loads the result folds it: other devices round otherwise.
    model, tokenizer = load_model(earlier.location.path, replace(earlier.options, device="cpu"))
    assert isinstance(model, ControlLLMForCausalLM)  # `find_earlier` has looked
    return collapse(model, inplace=True), tokenizer


def _stages(
    model: PreTrainedModel, earlier: Earlier, run: RunConfig, shares: bool
) -> tuple[Stage, ...]:
    own = earlier.names[-1]
    return all_stages(model, earlier, shares, own, Stage(own, earlier.run_folder))


FOLD = Going(_load, _stages)
