"""The exceptions a user may meet. Each message says what is wrong, where, and what to do."""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ControlLLMError",
    "DataError",
    "ModelError",
    "TrainingError",
]


class ControlLLMError(Exception):
    """Base of every error this library raises on purpose; the CLI prints it as one line."""


class ConfigError(ControlLLMError, ValueError):
    """A setting has a value that cannot work."""


class ModelError(ControlLLMError):
    """A model cannot be expanded, collapsed, combined or loaded as asked."""


class DataError(ControlLLMError):
    """A source, a row or a batch cannot be used; the message names file and row."""


class CheckpointError(ControlLLMError):
    """A checkpoint or a saved form is missing, incomplete or belongs to something else."""


class TrainingError(ControlLLMError):
    """Training cannot go on (a loss that is not finite, for instance)."""
