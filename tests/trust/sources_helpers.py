"""What a stranger who can compute the name of a cache folder, or who makes a data file, may do."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["Trap", "peak_of"]


class Trap:
    """A pickle that writes `proof` when it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.proof),)


def peak_of(code: str, *arguments: object) -> tuple[str, int]:
    """What a fresh process prints, and by how many bytes reading raised its memory at most.

    Args:
        code: Python that calls `begin()` when all is imported.
        *arguments: its `sys.argv[1:]`.
    """
    prelude = (
        "import resource, sys\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "def begin():\n    global before; before = peak()\n"
    )
    # A process that does not stop by itself is stopped before it harms the machine.
    limit = "resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{prelude}{limit}{code}\nprint(peak() - before)"]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *told, grown = done.stdout.splitlines()
    return "\n".join(told), int(grown)
