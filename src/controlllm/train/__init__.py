"""Floor 4: training, the only room that holds time.

    RunConfig --open_run_folder--> checkpoint or None
        |
    set_up          stages: Base -> Prepared -> Sharded -> Ready
        |
    Recorder        hooks that log, measure forgetting, save and resume; your callbacks
        |
    BACKENDS        native | hf: who makes the optimizer steps
        |
    TrainResult     history, best step within the budget, why it stopped, the model

In Python:

>>> from controlllm.train import RunConfig, train
>>> run = RunConfig.from_dict({
...     "preset": "retain",
...     "model": {"model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct"},
...     "data": {"train": [{"path": "new.jsonl"}], "learn": [{"path": "new-heldout.jsonl"}],
...              "retain": [{"path": "old-heldout.jsonl"}]},
...     "training": {"output_dir": "runs/first", "max_steps": 1000, "bf16": True},
... })
>>> result = train(run)                                            # doctest: +SKIP
>>> result.best                                                    # doctest: +SKIP
Best(step=900, learn_loss=0.81, forgetting=0.02)

Killed at any moment, the same call goes on from the newest checkpoint as if nothing had happened.

config    What a run file may say, and what goes together
parallel  Who the processes are, and which tensors each of them holds
step      One step's loss and update
observe   What a run measures
setup     From a config to things that stand ready
plan      Will it fit, before anything runs
record    Logs, checkpoints, and when to stop
loops     Who makes the steps
run       `train`: all of it in order
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.train.config.presets import preset_values
    from controlllm.train.config.run_config import (
        LoggingConfig,
        ModelConfig,
        RehearsalConfig,
        RunConfig,
        TrainingConfig,
    )
    from controlllm.train.observe.retention import Best
    from controlllm.train.record.hooks import Callback, RunState
    from controlllm.train.record.loggers import LOGGERS
    from controlllm.train.record.recorder import TrainResult
    from controlllm.train.run import train
    from controlllm.train.step.loss_types import LOSS_TYPES
    from controlllm.train.step.schedules import SCHEDULES

__all__ = [
    "LOGGERS",
    "LOSS_TYPES",
    "SCHEDULES",
    "Best",
    "Callback",
    "LoggingConfig",
    "ModelConfig",
    "RehearsalConfig",
    "RunConfig",
    "RunState",
    "TrainResult",
    "TrainingConfig",
    "preset_values",
    "train",
]

__getattr__, __dir__ = lazy_names(__name__)
