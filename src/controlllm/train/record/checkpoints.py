"""The hook that saves: checkpoints, which of them is the best, and their copies elsewhere."""

import logging
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from controlllm.checkpoint import (
    CheckpointWriter,
    TrainingState,
    Uploader,
    capture_rng,
    checkpoint_step,
    describe_model,
    mark_best,
    restore_rng,
)
from controlllm.checkpoint.training.state import load_values
from controlllm.common.errors import CheckpointError
from controlllm.train.config.run_config import RunConfig
from controlllm.train.observe.progress import Progress
from controlllm.train.observe.timing import CHECKPOINT, PhaseClock
from controlllm.train.parallel import World
from controlllm.train.record.folder import remote_run
from controlllm.train.record.hooks import Callback, RunState
from controlllm.train.record.uploads import Uploads
from controlllm.train.setup.base import seed_everything

__all__ = ["Checkpoints"]

log = logging.getLogger(__name__)

_SECONDS_TO_COPY = 5.0


class Checkpoints(Callback):
    """Saves every `training.save_steps`, at each best step and at the end; resumes from there.

    `announce` is told the folder of each checkpoint that is whole.
    """

    def __init__(
        self, run: RunConfig, world: World, clock: PhaseClock, announce: Callable[[Path], None]
    ) -> None:
        self.world, self.clock, self.announce = world, clock, announce
        limit = run.training.save_total_limit
        self._writer = CheckpointWriter(Path(run.training.output_dir), limit, world.ranks)
        remote = remote_run(run.training) if world.is_first else None
        self._uploader = None if remote is None else Uploader(remote, limit)
        self.uploads = Uploads(run.training.remote_dir is not None, world)

    def begin(self, state: RunState) -> None:
        """Copy what an earlier process left uncopied; a copy that cannot work fails now."""
        self._upload(state)
        self.uploads.wait()

    def flags(self) -> list[bool]:
        """The arguments of `act` as this process knows them, to be reduced over all processes."""
        return [self._writer.may_finish(), self.uploads.running, self.uploads.failed]

    def act(self, state: RunState, may_finish: bool, uploading: bool, failed: bool) -> None:
        """Finish a checkpoint once all have written their parts, and none is copying. Collective.

        Raises:
            CheckpointError: a copy has failed.
        """
        if failed:
            self.uploads.wait()  # Which raises the error on all processes.
        if may_finish and not uploading:
            self._finished(state, self._writer.finish())

    def save(self, state: RunState, folder: Path | None = None) -> None:
        """Save the run as it is now; it may become whole later."""
        ready = state.ready
        tensors, moments, rest = ready.storage.read()
        checkpoint = TrainingState(
            step=state.step,
            tensors=tensors,
            model=describe_model(state.model),
            optimizer=rest,
            optimizer_tensors=moments,
            scheduler=ready.scheduler.state_dict(),
            loader=ready.loader.state_dict(),
            rng=self.world.ranks.gather(capture_rng()),
            history=state.history,
            extra={
                "progress": state.progress.to_dict(),
                "alphas": ready.alphas.state_dict(),
                "rows": ready.rows_of_a_step,
                "rehearsed": ready.rehearsed,
            },
        )
        with self.clock.phase(CHECKPOINT):
            self.uploads.wait()  # What it copies may be the one that gives way to this one.
            whole = self._writer.save(checkpoint)
        self._finished(state, whole)

    def finish(self, state: RunState) -> None:
        """Wait until the last checkpoint is whole, here and elsewhere. Collective."""
        self.uploads.wait()
        self._finished(state, self._writer.finish())
        self.uploads.wait()

    def end(self, state: RunState) -> None:
        """Stop copying; the next start copies what is missing."""
        # Other processes must not wait for a copy after an error.
        self.uploads.close(_SECONDS_TO_COPY if self.world.size > 1 else None)

    def resume(self, state: RunState, checkpoint: Path) -> None:
        """Put everything back as it was when a checkpoint was saved."""
        log.info("Resuming %s", checkpoint)
        ready, ranks = state.ready, self.world.ranks
        saved = load_values(checkpoint)  # `open_run_folder` has verified every file of it.
        _require_same_stages(saved.model["config"], state, checkpoint)
        ready.storage.fill(checkpoint, saved.optimizer)
        ready.scheduler.load_state_dict(saved.scheduler)
        ready.loader.load_state_dict(saved.loader)
        ready.alphas.load_state_dict(saved.extra["alphas"])
        state.progress = Progress.from_dict(saved.extra["progress"], saved.history)
        state.saved = checkpoint
        now = ready.rows_of_a_step
        rows = saved.extra.get("rows", now)
        if rows != now and state.is_first:
            warnings.warn(
                f"A step had {rows} rows on the processes that wrote {checkpoint}, and has {now} "
                f"on these; training.total_train_batch_size={rows} (set from the start) keeps it.",
                stacklevel=2,
            )
        own = checkpoint.parent.resolve() == state.folder.resolve()
        if own:  # A kill between saving and marking would have lost the mark.
            self._mark_best(state, saved.step)
        if len(saved.rng) == ranks.world_size:
            restore_rng(saved.rng[ranks.rank])
        else:
            seed_everything(state.run.training.seed + saved.step + ranks.rank)

    def _finished(self, state: RunState, checkpoint: Path | None) -> None:
        """A checkpoint has become whole."""
        if checkpoint is None:
            return
        state.saved = checkpoint
        self._mark_best(state, checkpoint_step(checkpoint))
        self._upload(state)
        self.announce(checkpoint)

    def _mark_best(self, state: RunState, step: int) -> None:
        best = state.best
        if best is None or best.step != step or not state.is_first:
            return
        values = {"learn_loss": best.learn_loss}
        if best.forgetting is not None:
            values["forgetting"] = best.forgetting
        if best.kl_upper is not None:
            values["kl_upper"] = best.kl_upper
        values |= {f"forgetting/{stage}": value for stage, value in best.by_stage.items()}
        mark_best(state.folder, best.step, values)

    def _upload(self, state: RunState) -> None:
        """Copy the newest checkpoint, or what there is before the first one, elsewhere."""
        if self._uploader is None:
            return
        saved = state.saved
        if saved is not None and saved.parent.resolve() == state.folder.resolve():
            self.uploads.start(partial(self._uploader.send, saved))
        else:
            self.uploads.start(partial(self._uploader.send_files, state.folder))


def _require_same_stages(config: Mapping[str, Any], state: RunState, checkpoint: Path) -> None:
    """A run goes on after the stages that it began with (CheckpointError)."""
    before = list(config.get("parents") or [])
    now = list(describe_model(state.model)["config"].get("parents") or [])
    for old, new in zip_longest(before, now):
        if old is None or new is None or old["digest"] != new["digest"]:
            told = [f"{one['name']} ({one['place']})" if one else "none" for one in (old, new)]
            raise CheckpointError(
                f"{checkpoint} was trained after the stage {told[0]}, and this run goes on from "
                f"{told[1]}, which is another one. Name that stage as continue_from to go on, or "
                "begin anew in another training.output_dir."
            )
