"""Which sets did the base write itself? Their names say so."""

__all__ = ["OWN_TEXT", "is_own_text"]

OWN_TEXT = "own_text"
"""What sets that a model wrote begin with, and the first of them is called; those of an earlier run
stand behind its name: `a/own_text`."""


def is_own_text(name: str) -> bool:
    """Whether a set is called as those that a model wrote are.

    On them the expected rise of the loss is KL(base || trained), which is measured with less noise:
    it stands for the forgetting there.
    """
    return name.rpartition("/")[2].startswith(OWN_TEXT)
