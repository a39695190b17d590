"""The device of a run."""

import torch

from controlllm.common.errors import ConfigError

__all__ = ["find_device"]


def find_device(name: str) -> torch.device:
    """The device that a run file names.

    Raises:
        ConfigError: it is none, or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"model.device={name!r} is not a device; allowed: auto, cpu, cuda."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"model.device={name!r}, but torch sees no GPU; use cpu or auto.")
    return device
