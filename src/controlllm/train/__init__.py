"""Training: the only room that holds time."""

from controlllm.train.config import (
    LoggingConfig,
    ModelConfig,
    RehearsalConfig,
    RunConfig,
    TrainingConfig,
)
from controlllm.train.presets import preset_values

__all__ = [
    "LoggingConfig",
    "ModelConfig",
    "RehearsalConfig",
    "RunConfig",
    "TrainingConfig",
    "preset_values",
]
