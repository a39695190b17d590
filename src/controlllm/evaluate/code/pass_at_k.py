"""pass@k: the chance that one of k samples passes, without bias, from n samples of each task.

Of n samples c pass. Of all ways to choose k of them, C(n-c, k) / C(n, k) hold none that passes
(Chen et al., 2021, arXiv 2107.03374).
"""

import math
from collections.abc import Iterable

from controlllm.common.errors import ConfigError, DataError

__all__ = ["mean_pass_at_k", "pass_at_k"]


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The estimate of one task.

    Args:
        samples: how many were drawn.
        passed: how many of them passed.
        k: how many may be tried.

    Raises:
        ConfigError: k is below 1 or above the samples.
        DataError: more passed than were drawn, or less than none.
    """
    if not 1 <= k <= samples:
        raise ConfigError(f"pass@{k} needs at least {max(k, 1)} samples per task, not {samples}")
    if not 0 <= passed <= samples:
        raise DataError(f"{passed} of {samples} samples cannot have passed")
    failed = samples - passed
    if failed < k:
        return 1.0
    # C(n-c, k) / C(n, k) as a product of ratios: no factorial, nothing overflows.
    return 1.0 - math.prod(1.0 - k / one for one in range(failed + 1, samples + 1))


def mean_pass_at_k(tasks: Iterable[tuple[int, int]], k: int) -> float:
    """The mean over tasks.

    Args:
        tasks: samples and how many of them passed, per task.
        k: how many may be tried.

    Raises:
        ConfigError: there are no tasks, or k does not fit one of them.
        DataError: counts that cannot be.
    """
    values = [pass_at_k(samples, passed, k) for samples, passed in tasks]
    if not values:
        raise ConfigError(f"pass@{k} of no tasks at all")
    return math.fsum(values) / len(values)
