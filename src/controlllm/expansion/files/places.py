"""Where the stages before a sidecar may lie: a look at the disk that needs no torch."""

from collections.abc import Iterator
from pathlib import Path

from controlllm.common.text.names import is_checkpoint

__all__ = ["lies_in_run", "places_of"]


def lies_in_run(folder: Path) -> bool:
    """Whether a folder lies in that of a run."""
    inside, above = (place / "config.yaml" for place in (folder, folder.parent))
    return above.is_file() and not inside.is_file()


def places_of(recorded: str, child: Path) -> Iterator[Path]:
    """Folders where a stage may be: as recorded, and beside the run of a sidecar (`child`)."""
    place = Path(recorded)
    if "://" in recorded or "::" in recorded:
        return
    yield place
    run = child.parent if is_checkpoint(child.name) or lies_in_run(child) else child
    if not is_checkpoint(place.name):
        yield run.parent / place.name
    yield run.parent.joinpath(*place.parts[-2:])  # in the folder of its run
