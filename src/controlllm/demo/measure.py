"""Train one method and measure it at every setting of its dial."""

import time

from torch import nn
from transformers import PreTrainedModel

from controlllm.demo.config import DemoConfig
from controlllm.demo.domains import HeldOut
from controlllm.demo.methods import Method, load_base, run_config
from controlllm.demo.results import Outcome
from controlllm.evaluate import DialCurve, averaging_curve, calibrate
from controlllm.train import train

__all__ = ["train_and_measure"]

SETTINGS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
"""Where the dial is set: weights of the trained part."""


def train_and_measure(
    method: Method, config: DemoConfig, sets: HeldOut
) -> tuple[Outcome, PreTrainedModel]:
    """Run one method.

    Returns:
        What was measured; the model, its dial (if it has one) at the chosen setting.
    """
    started = time.monotonic()
    model = train(run_config(method, config)).model
    seconds = time.monotonic() - started
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    curve = _curve(method, model, config, sets)
    return Outcome(method.title, method.dial, curve, trained, seconds), model


def _curve(method: Method, model: nn.Module, config: DemoConfig, sets: HeldOut) -> DialCurve:
    """All methods go through the same evaluation; only what is turned differs."""
    if method.values.get("method") == "full":
        base, _ = load_base()
        return averaging_curve(
            (base, model), sets.learn, sets.retain, config.max_forgetting, SETTINGS
        )
    return calibrate(model, sets.learn, sets.retain, config.max_forgetting, SETTINGS)
