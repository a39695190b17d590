"""Where metrics go."""

from dataclasses import dataclass

from controlllm.common.facts import Read, check_values, setting
from controlllm.common.registry import check_choice
from controlllm.train.config.methods import METHODS
from controlllm.train.config.registries import LOGGERS

__all__ = ["LoggingConfig"]


@dataclass
class LoggingConfig:
    """Where metrics go."""

    logging_steps: int = setting(10, at_least=1)
    """Optimizer steps between training records."""
    report_to: list[str] | str = setting(factory=lambda: ["console", "jsonl", "tensorboard"])
    """Any of console, jsonl (metrics.jsonl), tensorboard (tensorboard/), wandb, or a registered
    name; with training.backend=hf also what transformers knows: mlflow, comet_ml, trackio, swanlab,
    ... One may stand without brackets; none = nowhere."""
    probes: bool = setting(
        False,
        may_change=True,
        read=Read(
            lambda run: METHODS.get(run.method).expands and run.measures,
            "there are no copies, or no held-out set to look at them with",
        ),
    )
    """At each evaluation, record |e - p| / |p|, cos(p, e) and alpha of every expanded block, on the
    first batch of each held-out set: one forward pass more for each (docs/probes.md)."""
    run_name: str | None = setting(
        None,
        read=Read(
            lambda run: "wandb" in run.logging.report_to or bool(run.logging.integrations),
            "no logger of logging.report_to shows it, as wandb does",
        ),
    )
    """Name of the run in W&B; null = the name of output_dir."""
    project: str = setting(
        "controlllm",
        read=Read(
            lambda run: "wandb" in run.logging.report_to, "logging.report_to does not name wandb"
        ),
    )
    """Project in W&B."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "logging")
        if isinstance(self.report_to, str):
            self.report_to = [] if self.report_to == "none" else [self.report_to]
        for name in self.integrations:
            # Asked only where one of them is meant: it looks for all of their packages.
            from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

            names = dict.fromkeys([*LOGGERS.names(), *INTEGRATION_TO_CALLBACK])
            check_choice("logging.report_to", name, names, is_open=True)

    @property
    def integrations(self) -> list[str]:
        """Loggers that `transformers.Trainer` brings."""
        return [name for name in self.report_to if name not in LOGGERS.names()]
