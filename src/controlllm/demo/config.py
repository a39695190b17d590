"""What can be said about a demo."""

from dataclasses import dataclass
from pathlib import Path

from controlllm.common.errors import ConfigError
from controlllm.common.settings import LARGEST_SEED, check_range

__all__ = ["DemoConfig", "base_model_path"]


@dataclass
class DemoConfig:
    """The two-minute story: a small model learns Python code by full tuning and by Control LLM.

    It prints what each way learned and forgot, and writes the results, a picture and the model.
    """

    output_dir: str = "demo-output"
    """Folder for everything the demo writes; absent, empty, or of an earlier demo."""

    max_steps: int = 200
    """Optimizer steps of each method; the learning rates were chosen for 200."""

    max_forgetting: float = 0.05
    """Budget of forgetting for the calibrated models, in nats per token."""

    eval_passages: int = 32
    """Held-out passages of each domain that every model is measured on."""

    seed: int = 0
    """Seed of the data order, of what the base writes for rehearsal, and of alpha sampling."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        for name in ("max_steps", "eval_passages"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r}; allowed: at least 1.")
        check_range("seed", self.seed, 0, LARGEST_SEED)
        if not 0 <= self.max_forgetting < float("inf"):
            raise ConfigError(f"max_forgetting={self.max_forgetting!r}; allowed: at least 0.")


def base_model_path() -> Path:
    """The folder of the small base model that ships with the package."""
    return Path(__file__).parent / "base"
