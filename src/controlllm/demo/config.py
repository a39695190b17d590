"""What can be said about a demo."""

from dataclasses import dataclass
from pathlib import Path

from controlllm.common.facts import check_values, setting
from controlllm.common.settings import LARGEST_SEED

__all__ = ["DemoConfig", "base_model_path"]


@dataclass
class DemoConfig:
    """The story in four minutes: full tuning and Control LLM teach a small model Python code.

    It prints what each way learned and forgot, and writes the results, a picture and the model.
    """

    output_dir: str = "demo-output"
    """Folder for everything the demo writes; absent, empty, or of an earlier demo."""

    max_steps: int = setting(150, at_least=1)
    """Optimizer steps of each method; the learning rates were chosen for 200."""

    max_forgetting: float = setting(0.05)
    """Budget of forgetting for the calibrated models, in nats per token."""

    eval_passages: int = setting(32, at_least=1)
    """Held-out passages of each domain that every model is measured on. Dials are chosen on others:
    a quarter as many of the new domain, and half as many of the old one, or that the base wrote."""

    seed: int = setting(0, at_most=LARGEST_SEED)
    """Seed of the data order, of what the base writes for rehearsal, and of alpha sampling."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "")


def base_model_path() -> Path:
    """The folder of the small base model that ships with the package."""
    return Path(__file__).parent / "base"
