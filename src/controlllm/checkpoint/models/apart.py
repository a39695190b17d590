"""What is saved apart from its base, wherever it lies, and its tensors whole."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import NamedTuple

from controlllm.checkpoint.models.load_options import LoadOptions
from controlllm.checkpoint.models.locate import Kind, Location
from controlllm.checkpoint.models.whole import download, file_on_hub
from controlllm.checkpoint.training.saved import KINDS, OPTIMIZER_PREFIX, SavedKind, kind_in
from controlllm.checkpoint.training.shards import is_sharded, join_shards
from controlllm.common.errors import CheckpointError

__all__ = ["Apart", "joined_parts", "saved_apart"]


class Apart(NamedTuple):
    """What is saved apart from its base: its kind, and the folder on this machine."""

    kind: SavedKind
    folder: Path


def saved_apart(location: Location, revision: str | None = None) -> Apart | None:
    """What is to be put on a base, or None if what lies there is a whole model.

    Args:
        location: where to look; what is found on the Hub is downloaded.
        revision: branch, tag or commit there.

    Raises:
        CheckpointError: the Hub refuses, or what is there cannot be downloaded.
    """
    name = location.path
    if location.kind is not Kind.HUB:
        saved = kind_in(Path(name))
        return None if saved is None or saved.base_of is None else Apart(saved, Path(name))
    for kind in KINDS.values():
        if kind.base_of is not None and file_on_hub(name, kind.config, revision):
            return Apart(kind, download(name, revision))
    return None


@contextmanager
def joined_parts(location: Location, options: LoadOptions) -> Iterator[Path | None]:
    """A temporary folder with the whole tensors of a checkpoint that several processes wrote.

    None for anything else. What is mapped from there stays when the folder goes.

    Raises:
        CheckpointError: they cannot be written.
    """
    folder = Path(location.path)
    if location.kind is not Kind.CHECKPOINT or not is_sharded(folder):
        yield None
        return
    place = options.scratch_dir or gettempdir()
    with ExitStack() as stack:
        try:
            temporary = TemporaryDirectory(dir=place, prefix="joined-", ignore_cleanup_errors=True)
            target = Path(stack.enter_context(temporary))
            join_shards(folder, target, without=OPTIMIZER_PREFIX)
            for file in (folder / "config.json", *folder.glob("*.py")):
                if file.is_file():
                    shutil.copy(file, target)
        except OSError as error:
            raise CheckpointError(
                f"the parts of {folder} cannot be joined in {place}: {error}. Set scratch_dir "
                "(or TMPDIR) to a folder with room for its trained tensors."
            ) from error
        yield target
