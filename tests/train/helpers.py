from typing import Any

from controlllm.train.observe.metrics import is_of_the_machine


def losses_of(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without what a clock or the machine decides."""
    return [
        {k: v for k, v in row.items() if k != "time" and not is_of_the_machine(k)}
        for row in history
    ]
