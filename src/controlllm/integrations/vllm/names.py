"""The names of sidecars in the name of a class.

vLLM finds the class that checks requests by its name, in every process, and asks it without its
configuration: the name says which sidecars there are. No vLLM is needed here.
"""

import json
from collections.abc import Sequence

__all__ = ["variant", "variant_name"]


def variant_name(cls: str, sidecars: Sequence[str]) -> str:
    """What the class is called that knows these names.

    >>> variant_name("Words", ["zh"])
    'Words_5b227a68225d'
    """
    return f"{cls}_{json.dumps([*sidecars]).encode().hex()}" if sidecars else cls


def variant(cls: type, name: str) -> type:
    """The class of that name, which has the names in `sidecars`.

    Raises:
        AttributeError: the name is none that `variant_name` gives.
    """
    start, _, code = name.partition("_")
    try:
        sidecars = tuple(json.loads(bytes.fromhex(code)))
    except ValueError:
        start = ""
    if start != cls.__name__:
        raise AttributeError(f"module {cls.__module__!r} has no attribute {name!r}")
    return type(name, (cls,), {"sidecars": sidecars})
