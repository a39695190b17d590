"""The ways to learn that the demo compares, as run configs; each is trained and measured."""

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint import LoadOptions, load_model
from controlllm.demo.config import DemoConfig, base_model_path
from controlllm.demo.domains import Choosing, HeldOut, data_config
from controlllm.demo.results import ON_OLD, ON_OWN, Outcome
from controlllm.evaluate import averaging_curve, calibrate
from controlllm.expansion import ControlLLMForCausalLM
from controlllm.train import RunConfig, train

__all__ = ["METHODS", "Method", "load_base", "run_config", "train_and_measure"]

SETTINGS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
"""Where the dial is set to choose one: weights of the trained part."""
DRAWN = (0.2, 0.4, 0.7, 1.0)
"""Where it is set for the picture, beside those that were chosen."""


@dataclass(frozen=True)
class Method:
    """One way to learn: a name for folders, a title for table and picture, what its dial turns.

    `values` is what of the run config is its own.
    """

    name: str
    title: str
    dial: str
    values: dict[str, Any]


# Learning rates: of 3e-4, 1e-3, 3e-3 and 1e-2 the one that, for each method, learns most within the
# budget (benchmarks/demo_learning_rates.py; all that was tried is in docs/results/demo.md).
METHODS = (
    Method(
        "full",
        "full tuning",
        "weight averaging",
        {"method": "full", "training": {"learning_rate": 3e-3}},
    ),
    Method(
        "paper",
        "Control LLM, paper",
        "alpha",
        {"preset": "paper", "expansion": {"num_blocks": 4}, "training": {"learning_rate": 1e-2}},
    ),
    Method(
        "retain",
        "Control LLM, retain",
        "alpha",
        {"preset": "retain", "expansion": {"num_blocks": 4}, "training": {"learning_rate": 3e-3}},
    ),
)
"""In the order they are told. All blocks are expanded: the base is small."""


def load_base() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model in float32 on the CPU, and its tokenizer."""
    return load_model(base_model_path(), LoadOptions(dtype="float32", device="cpu"))


def run_config(method: Method, config: DemoConfig) -> RunConfig:
    """The run of a method: the same steps, batches and schedule for all."""
    folder = Path(config.output_dir)
    own = method.values
    training = {
        "output_dir": str(folder / "runs" / method.name),
        "overwrite_output_dir": True,
        "seed": config.seed,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": 8,
        "warmup_steps": 0.1,
        "min_lr_rate": 0.1,
        "eval_steps": max(config.max_steps // 2, 1),
        "save_steps": config.max_steps,
    }
    values = {
        **own,
        "model": {"model_name_or_path": str(base_model_path()), "device": "cpu"},
        "data": asdict(data_config(folder / "data")) | {"max_eval_samples": 8},
        "training": training | own["training"],
        "logging": {
            "logging_steps": max(config.max_steps // 8, 1),
            "report_to": ["console", "jsonl"],
        },
    }
    if own.get("preset") == "retain":  # An eighth of eight rows: each sequence is used once.
        values["rehearsal"] = {"num_sequences": config.max_steps, "batch_size": config.max_steps}
    return RunConfig.from_dict(values)


def train_and_measure(
    method: Method, config: DemoConfig, sets: HeldOut, choosing: Choosing
) -> tuple[Outcome, PreTrainedModel]:
    """Run one method, choose settings of its dial, and measure it there and along the dial.

    Returns:
        What was measured; the model, its dial (if it has one) at the setting chosen on own text.
    """
    started = time.monotonic()
    model = train(run_config(method, config)).model
    seconds = time.monotonic() - started
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # All methods go through the same evaluation; only what is turned differs.
    full = method.values.get("method") == "full"
    models = (load_base()[0], model)
    measure = partial(averaging_curve, models) if full else partial(calibrate, model)
    budget = config.max_forgetting
    choices = {
        ON_OLD: measure(choosing.learn, choosing.old, budget, SETTINGS),
        ON_OWN: measure(choosing.learn, choosing.own, budget, SETTINGS),
    }
    chosen = [curve.chosen.alpha for curve in choices.values()]
    settings = [*DRAWN, *(alpha for alpha in chosen if alpha is not None)]
    curve = measure(sets.learn, sets.retain, budget, settings, 0)
    if isinstance(model, ControlLLMForCausalLM):
        model.set_alpha(chosen[-1])
    return Outcome(method.title, method.dial, curve, choices, trained, seconds), model
