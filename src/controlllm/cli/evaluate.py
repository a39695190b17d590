"""`controlllm eval`: what a model learned and forgot, base and trained side by side."""

from controlllm.cli.kit.benchmarks import loaded_suites, require_places
from controlllm.cli.kit.eval_options import EvalOptions
from controlllm.cli.kit.parsing import as_list, parse_options
from controlllm.cli.kit.sets import UNREAD, check_names, run_defaults
from controlllm.cli.kit.terminal import be_silent, is_first
from controlllm.common.errors import ConfigError
from controlllm.common.storage.files import require_writable
from controlllm.data import SourceConfig
from controlllm.train.config.parallel_config import ParallelConfig

__all__ = ["run"]


def run(argv: list[str]) -> None:
    """Measure, print tables, and write the numbers if asked."""
    options = parse_options(EvalOptions, argv, "eval", run_defaults, unread=UNREAD)
    if options.output is not None:
        require_writable(options.output)
    if options.asked:
        require_places(options, options.model)
    sources = [SourceConfig(path=path) for path in as_list(options.files)]
    sources += [*options.data.learn, *options.data.retain]
    if not sources and not options.asked:
        raise ConfigError(
            "nothing to measure: give --files, --data.learn, --data.retain, --suite or --tasks."
        )
    check_names(sources)
    from controlllm.cli.launch import end_with_launcher, launch, processes_to_start

    count = processes_to_start(options.nproc, options.load.device)
    if count > 1:
        raise SystemExit(launch("eval", argv, count))
    end_with_launcher()
    if not is_first():
        be_silent()
    from controlllm.cli.evaluate_models import measure
    from controlllm.data.loader.plugins import load_plugins
    from controlllm.train.parallel import open_world

    load_plugins(options.data)  # A suite may name an extractor of the user's own.
    shared = ParallelConfig(strategy="ddp")
    with open_world(shared, options.load.device) as world:
        measure(options, sources, loaded_suites(options), world.ranks)
