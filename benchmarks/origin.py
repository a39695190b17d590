"""Where numbers come from: what stands beside them in every file of results."""

import platform
import subprocess
import time

import torch

__all__ = ["about"]


def about() -> dict[str, str]:
    """Commit, machine, threads, version of torch, day."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
