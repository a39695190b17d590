"""Which sets did the base write itself? Their names say so. And how a bound on them is told."""

import math

__all__ = ["OWN_TEXT", "is_own_text", "rounded_up", "variation_bound"]

OWN_TEXT = "own_text"
"""What sets that a model wrote begin with, and the first of them is called; those of an earlier run
stand behind its name: `a/own_text`."""


def is_own_text(name: str) -> bool:
    """Whether a set is called as those that a model wrote are.

    On them the expected rise of the loss is KL(base || trained), which is measured with less noise:
    it stands for the forgetting there.
    """
    return name.rpartition("/")[2].startswith(OWN_TEXT)


def variation_bound(kl: float) -> float:
    """Upper bound of the mean total variation distance per token, 0 to 1, by one of the KL.

    It is at most sqrt(KL / 2) (Pinsker at each position, Jensen over positions).
    """
    return min(1.0, math.sqrt(kl / 2))


def rounded_up(value: float) -> str:
    """A bound in three decimals, or one digit where it is smaller; never below itself."""
    if not math.isfinite(value) or value <= 0:
        return f"{value:.3f}"
    places = max(3, -math.floor(math.log10(value)))
    return f"{math.ceil(value * 10**places - 1e-9) / 10**places:.{places}f}"
