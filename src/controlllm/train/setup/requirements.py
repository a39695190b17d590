"""Check for the packages that a run needs, before anything is loaded."""

from controlllm.common.errors import ConfigError
from controlllm.expansion import require_peft
from controlllm.train.config.optimizers import OPTIMIZERS
from controlllm.train.config.run_config import RunConfig
from controlllm.train.parallel.device import find_device
from controlllm.train.step.liger import require_liger

__all__ = ["require_packages"]


def require_packages(run: RunConfig) -> None:
    """Check that every package is there that the run needs (ConfigError)."""
    if run.adapters:
        require_peft()
    OPTIMIZERS.get(run.training.optim).require(f"training.optim={run.training.optim}")
    if run.quantizer is not None:
        run.quantizer.require(f"model.quantize_base={run.model.quantize_base}")
    for name in run.logging.integrations:
        _require_integration(name)
    if run.training.use_liger_kernel:
        require_liger(find_device(run.model.device))


def _require_integration(name: str) -> None:
    from transformers.integrations import integration_utils

    short = name.removesuffix("_ml")
    is_available = getattr(integration_utils, f"is_{short}_available", None)
    if is_available is not None and not is_available():
        raise ConfigError(
            f"logging.report_to={name} needs a package that is not installed: pip install {name}."
        )
