"""Writing the checkpoints of a run: by one process, or by all while training goes on."""

from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from controlllm.checkpoint.training.checkpoints import prune_checkpoints
from controlllm.checkpoint.training.manifest import write_manifest
from controlllm.checkpoint.training.shards import start_shards
from controlllm.checkpoint.training.state import TrainingState, save_checkpoint, write_values
from controlllm.common.distributed import Ranks
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.files import atomic_folder

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """Writes checkpoints; of several processes each writes its own parts, in the background.

    A checkpoint gets its name only once every part of it is on the disk, which `finish` waits for.
    """

    def __init__(self, output_dir: Path, save_total_limit: int | None, ranks: Ranks) -> None:
        self.output_dir = output_dir
        self.limit = save_total_limit
        self.ranks = ranks
        self._group = ranks.fresh_group()
        self._running: _Running | None = None

    def save(self, state: TrainingState) -> Path | None:
        """Save now (one process), or begin to (several); one that was begun is finished first.

        Returns:
            The checkpoint that is whole by now, if any became so.

        Raises:
            CheckpointError: the disk is full, read-only, or another rank could not write; older
                checkpoints are untouched.
        """
        if self.ranks.world_size == 1:
            return save_checkpoint(self.output_dir, state, self.limit)
        whole = self.finish()
        target, stack = self.output_dir / f"checkpoint-{state.step}", ExitStack()

        def begin() -> Path:
            with ExitStack() as beginning:
                folder = beginning.enter_context(atomic_folder(target, overwrite=True))
                write_values(folder, state)
                stack.enter_context(beginning.pop_all())
            return folder

        folder = self.ranks.first(begin)
        parts = {**state.tensors, **state.optimizer_tensors}
        self._running = _Running(target, folder, stack, start_shards(folder, parts, self._group))
        return whole

    def may_finish(self) -> bool:
        """Whether this rank's parts of the one that was begun are written."""
        return self._running is not None and self._running.future.done()

    def finish(self) -> Path | None:
        """Wait until the checkpoint that was begun is whole. Collective.

        Raises:
            CheckpointError: a rank could not write its parts; older checkpoints are untouched.
        """
        running, self._running = self._running, None
        if running is None:
            return None
        from torch.distributed.checkpoint.api import CheckpointException  # No Exception to torch.

        error: Exception | None = None
        try:
            with running.stack:
                running.future.result()
                # All parts are there: torch tells each rank only once it has heard of all.
                if self.ranks.rank == 0:
                    write_manifest(running.folder)
            if self.ranks.rank == 0:
                prune_checkpoints(self.output_dir, self.limit, keep=running.target)
        except (Exception, CheckpointException) as failure:
            error = self._own_part_in(failure, running.target)
        self.ranks.agree(error)
        return running.target

    def _own_part_in(self, failure: BaseException, target: Path) -> Exception | None:
        """What this rank has to tell of a failure of which torch has told all ranks."""
        if isinstance(failure, Exception):
            return failure
        failures: dict[int, Any] = getattr(failure, "failures", {})
        if self.ranks.rank not in failures:
            return None  # Those will tell it.
        cause, _ = failures[self.ranks.rank]
        return CheckpointError(
            f"cannot write {target}: {cause}. What was saved before is untouched; free some space "
            "or choose another place, and run again."
        )


class _Running:
    """A checkpoint that is being written."""

    def __init__(self, target: Path, folder: Path, stack: ExitStack, future: Future[Any]) -> None:
        self.target, self.folder = target, folder
        self.stack, self.future = stack, future
