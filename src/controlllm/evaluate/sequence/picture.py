"""The matrix as a picture. matplotlib is imported here, and only when one is drawn."""

import math
from pathlib import Path

from controlllm.common.storage.files import atomic_file
from controlllm.common.text.readable import readable
from controlllm.evaluate.sequence.matrix import SequenceMatrix
from controlllm.expansion.files.records import BASE

__all__ = ["plot_matrix"]

_LONGEST = 24
"""Characters of a task's name that are shown."""


def plot_matrix(matrix: SequenceMatrix, path: str | Path) -> None:
    """Draw losses by stage and task as a PNG: blue is better than the base, red is worse.

    A frame stands around what a stage has just learned. The file is written atomically.
    """
    # A Figure without pyplot: no global state, no window system, whatever back end the user has.
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    stages, tasks = [*matrix.losses], matrix.tasks
    gains = [
        [matrix.loss(BASE, task) - matrix.loss(stage, task) for task in tasks] for stage in stages
    ]
    sizes = [abs(gain) for row in gains for gain in row if math.isfinite(gain)]
    largest = max(sizes, default=0.0) or 1.0
    figure = Figure(
        figsize=(2.6 + 1.6 * len(tasks), 1.6 + 0.62 * len(stages)), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(gains, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto", alpha=0.8)
    for row, stage in enumerate(stages):
        for column, task in enumerate(tasks):
            change = gains[row][column]
            told = f"{matrix.loss(stage, task):.3f}"
            told += "" if stage == BASE else f"\n({-change:+.3f})"
            axes.text(column, row, told, ha="center", va="center", fontsize=9, color="0.1")
            if stage == task:
                box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=2)
                axes.add_patch(box)
    axes.set_xticks(range(len(tasks)), [_shown(task) for task in tasks])
    axes.set_yticks(range(len(stages)), [BASE, *(f"after {_shown(task)}" for task in tasks)])
    axes.set_xlabel("task")
    axes.set_title("Loss, and its change from the base (nats per token)", loc="left", fontsize=11)
    figure.colorbar(image, label="gain over the base")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _shown(name: str) -> str:
    """A name of somebody's as plain text: a dollar sign would begin a formula."""
    told = readable(name).replace("$", r"\$")
    return told if len(told) <= _LONGEST else f"{told[: _LONGEST - 1]}…"
