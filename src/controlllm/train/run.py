"""`train(run)`: the whole way from a run config to a trained model."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from controlllm.common.errors import ConfigError
from controlllm.common.storage.lock import occupied
from controlllm.train.config.run_config import RunConfig
from controlllm.train.config.unread import warn_of_unread
from controlllm.train.config.ways import WAYS
from controlllm.train.loops.backends import BACKENDS
from controlllm.train.observe.debugging import prepare_recorder
from controlllm.train.parallel import World, open_world
from controlllm.train.plan.worst_case import run_worst_case
from controlllm.train.record.folder import open_run_folder, save_tokenizer
from controlllm.train.record.hooks import Callback
from controlllm.train.record.recorder import Recorder, TrainResult
from controlllm.train.record.signals import StopSignals
from controlllm.train.setup.model import Loaded
from controlllm.train.setup.ready import set_up
from controlllm.train.setup.ways.earlier import settled_run

__all__ = ["train"]


def train(
    run: RunConfig, loaded: Loaded | None = None, callbacks: Sequence[Callback] = ()
) -> TrainResult:
    """Train as `run` says; resumes by itself where an earlier process was stopped.

    Where a launcher (torchrun, srun) started several processes, each calls this, and they train one
    model together (`run.parallel`).

    SIGTERM, SIGUSR1 or Ctrl-C let the run finish its step, save, and return (`stopped_because:
    preempted`); a second one ends the process at once.

    Args:
        run: the run config.
        loaded: model and tokenizer to use instead of loading `run.model`; both are taken over.
        callbacks: what else is to happen while it trains, in both back ends.

    Returns:
        Where the run lies, its history, its best step, why it stopped, and the model as it is now
        (of several processes each has its parts).

    Raises:
        ConfigError: for a config that cannot work, or an output folder that holds something else,
            that another run writes, or that cannot be written.
        DataError, ModelError, CheckpointError: for what the config names.
        TrainingError: if a loss or a gradient is not finite; the last checkpoint stays good.
    """
    # What is missing is said before anything is written or anything slow begins.
    if loaded is not None and run.continue_from is not None:
        raise ConfigError(
            f"continue_from={run.continue_from!r} loads its model itself; leave `loaded` out, and "
            "name the base as model.model_name_or_path if it has moved."
        )
    if loaded is None and run.model.model_name_or_path is None and run.continue_from is None:
        raise ConfigError("model.model_name_or_path is not set; name a model or a folder.")
    if not run.data.train and not WAYS.get(run.continue_by).all_data:
        raise ConfigError("data.train names no source; give at least one to learn from.")
    _require_callbacks(callbacks)
    prepare_recorder(run.debug, run.training.output_dir)
    with StopSignals() as signals, open_world(run.parallel, run.model.device) as world:
        run = world.ranks.first(partial(settled_run, run))
        with ExitStack() as stack:
            own = occupied(Path(run.training.output_dir), "training.output_dir")
            world.ranks.first(lambda: stack.enter_context(own))
            result = _train(run, loaded, world, signals, callbacks)
        # They leave together: a launcher that sees one end may end the others.
        world.ranks.agree(None)
        signals.leave()
        return result


def _train(
    run: RunConfig,
    loaded: Loaded | None,
    world: World,
    signals: StopSignals,
    callbacks: Sequence[Callback],
) -> TrainResult:
    if world.is_first:
        warn_of_unread(run, world.size)
    checkpoint = world.ranks.first(lambda: open_run_folder(run))
    ready = set_up(run, loaded, world, checkpoint)
    world.ranks.first(lambda: save_tokenizer(ready.tokenizer, run.training.output_dir))
    recorder = Recorder(ready, checkpoint, signals, callbacks)
    try:
        if run.training.worst_case_first:
            run_worst_case(ready)
        return BACKENDS.get(run.training.backend)(ready, recorder)
    finally:
        ready.alphas.release()
        ready.loader.close()
        recorder.close()


def _require_callbacks(callbacks: Sequence[Callback]) -> None:
    for number, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            kind = callback if isinstance(callback, type) else type(callback)
            what = "the class" if isinstance(callback, type) else "an object of"
            raise ConfigError(
                f"callbacks[{number}] is {what} {kind.__module__}.{kind.__qualname__}; give an "
                "object of a subclass of controlllm.train.Callback (docs/extending/callback.md)."
            )
