"""The suite of benchmarks that a run asks while it trains."""

from controlllm.common.errors import ConfigError
from controlllm.evaluate import Draw, LoadedSuite, available, load_questions, load_suite
from controlllm.train.config.run_config import RunConfig
from controlllm.train.parallel import World

__all__ = ["load_benchmarks"]

_INSTEAD = (
    "put the data below evaluation.data_dir, or name in evaluation.suite a YAML of the benchmarks "
    "that can be asked here"
)


def load_benchmarks(run: RunConfig, world: World) -> LoadedSuite | None:
    """Load the questions of `evaluation.suite`, before a model is.

    Raises:
        ConfigError: there is no such suite, this machine lacks something, it asks for programs, or
            no process holds the whole model.
        DataError: documents cannot be loaded.
    """
    config = run.evaluation
    if config.suite is None:
        return None
    if world.cuts_weights and world.size > 1:
        raise ConfigError(
            f"evaluation.suite={config.suite!r} needs processes that hold the whole model, which "
            f"parallel.strategy={run.parallel.strategy} cuts into parts: take ddp or zero2, or ask "
            "the suite after the run, by `controlllm eval`."
        )
    suite = available(load_suite(config.suite), config.data_dir, instead=_INSTEAD)
    draw = Draw(config.sample, seed=run.training.seed)
    try:
        loaded = load_questions(suite, config.data_dir, draw)
    except ConfigError as error:
        raise ConfigError(
            f"evaluation (suite={config.suite!r}, sample={config.sample}): {error}"
        ) from error
    if code := loaded.of_kind("code"):
        raise ConfigError(
            f"evaluation.suite={config.suite!r} has programs to write ({', '.join(code)}), which "
            "a run does not run; ask it after the run, by `controlllm eval --code_sandbox strict`."
        )
    return loaded
