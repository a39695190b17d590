"""The exceptions a user may meet. Each message says what is wrong, where, and what to do."""

from dataclasses import dataclass

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ControlLLMError",
    "DataError",
    "LostRankError",
    "ModelError",
    "Outcome",
    "TrainingError",
    "note_outcome",
    "noted_outcome",
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


class LostRankError(ControlLLMError):
    """Another process of the run died or did not answer; the same run may go well next time."""


@dataclass(frozen=True)
class Outcome:
    """How one of several processes is to end after an error.

    Attributes:
        shown: whether this process shows the error; of all processes one does.
        code: its exit code.
    """

    shown: bool
    code: int


def note_outcome(error: BaseException, outcome: Outcome) -> None:
    """Write on an error how its process is to end, for the code that catches it last."""
    vars(error)["outcome"] = outcome


def noted_outcome(error: BaseException) -> Outcome | None:
    """What was written on an error; None for one that only this process knows of."""
    return vars(error).get("outcome")
