"""`controlllm eval`: what a model learned and forgot, base and trained side by side."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from transformers import PreTrainedModel

from controlllm.checkpoint import LoadOptions, find_tokenizer, load_model
from controlllm.cli.kit.benchmarks import (
    OF_BENCHMARKS,
    BenchmarkOptions,
    folder_of,
    graders_of,
    loaded_suites,
    require_places,
    save_evaluation,
    store_of,
)
from controlllm.cli.kit.parsing import as_list, parse_options
from controlllm.cli.kit.reference import reference_of
from controlllm.cli.kit.sets import (
    UNREAD,
    Sets,
    as_numbers,
    check_names,
    load_sets,
    run_defaults,
    tell_size,
)
from controlllm.cli.kit.terminal import be_silent, is_first
from controlllm.cli.launch import end_with_launcher, launch, processes_to_start
from controlllm.common.distributed import Ranks
from controlllm.common.errors import ConfigError
from controlllm.common.facts import setting
from controlllm.common.settings import Rule, check_said
from controlllm.common.storage.files import require_writable, write_json
from controlllm.common.storage.remote import shown
from controlllm.common.text.progress import progress, stage
from controlllm.data import DataConfig, SourceConfig
from controlllm.data.loader.plugins import load_plugins
from controlllm.evaluate import (
    Evaluation,
    Grader,
    LoadedSuite,
    Reference,
    Target,
    evaluate_losses,
    evaluate_suite,
    format_table,
    losses_table,
    measure_retention,
    numbers_of,
    readings_table,
    scores_table,
    stored_targets,
    targets_of,
    vllm_targets,
)
from controlllm.evaluate.forgetting.dial import check_settings
from controlllm.evaluate.forgetting.losses import warn_if_not_finite
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.train.config.parallel_config import ParallelConfig
from controlllm.train.parallel.world import open_world

__all__ = ["EvalOptions", "run"]

_OF_MODELS = tuple(
    Rule(name, lambda one: one.asked, "only --suite and --tasks read it; leave it out")
    for name in ("collapsed", "engine", "stored")
)


@dataclass
class EvalOptions(BenchmarkOptions):
    """Measure loss and perplexity on files, and ask benchmarks, for base and trained model.

    A run folder brings its own sets (data.learn, data.retain) along.
    """

    model: str
    """Run folder, checkpoint, sidecar, model folder or Hub name."""
    files: str | list[str] = field(default_factory=list)
    """Files to measure the loss on, with commas between them (or a list)."""
    data: DataConfig = field(default_factory=DataConfig)
    """How files are read; data.learn and data.retain are measured too."""
    nproc: int | Literal["auto"] = setting(1, at_least=1)
    """Processes of this machine that share the work, each with the whole model; `auto` = one for
    each visible GPU."""
    batch_size: int = setting(8, at_least=1)
    """Rows of one batch."""
    alpha: str | float | list[float] | None = None
    """Alpha to measure at; null = as it was saved. Several (0,0.3,1) are asked --suite and --tasks
    one after the other, 0 being the base."""
    collapsed: bool = False
    """Ask --suite and --tasks of the model collapsed into the base's form, too."""
    reference: str | None = None
    """Base to compare a model with that does not carry it (no expansion, no adapters)."""
    output: str | None = None
    """JSON file to write all numbers to."""
    engine: str = setting("hf", choices=("hf", "vllm"))
    """What computes --suite and --tasks: transformers in this process, or vLLM where it is
    installed, which loads folders of whole weights only (plain or collapsed models)."""
    stored: bool = False
    """Read the answers of the last such evaluation again, without its models: after a metric or an
    extractor has changed. What the store lacks is an error."""
    load: LoadOptions = field(default_factory=lambda: LoadOptions(device="auto"))
    """How the model is loaded."""

    def __post_init__(self) -> None:
        """Check the values, and that what is said is used.

        Raises:
            ConfigError: with the option and what to do.
        """
        super().__post_init__()
        check_settings("alpha", self.alphas)
        check_said(self, (*OF_BENCHMARKS, *_OF_MODELS))
        if self.engine == "vllm" and (self.alpha is not None or self.collapsed):
            raise ConfigError(
                "engine=vllm has no dial: export the collapsed model, and evaluate that folder."
            )
        if self.stored and (self.alpha is not None or self.collapsed or self.reference):
            raise ConfigError(
                "stored=true reads the models of the last evaluation; leave alpha, collapsed and "
                "reference out."
            )
        if len(self.alphas) > 1 and not self.asked:
            raise ConfigError("several alphas are for --suite and --tasks; give one.")

    @property
    def alphas(self) -> list[float]:
        """The settings of the dial that are named."""
        return [] if self.alpha is None else as_numbers("alpha", self.alpha, float)


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
    count = processes_to_start(options.nproc, options.load.device)
    if count > 1:
        raise SystemExit(launch("eval", argv, count))
    end_with_launcher()
    if not is_first():
        be_silent()
    load_plugins(options.data)  # A suite may name an extractor of the user's own.
    shared = ParallelConfig(strategy="ddp")
    with open_world(shared, options.load.device) as world:
        _measure(options, sources, loaded_suites(options), world.ranks)


def _measure(
    options: EvalOptions,
    sources: list[SourceConfig],
    suites: Sequence[LoadedSuite],
    ranks: Ranks,
) -> None:
    folder = folder_of(options, options.model)
    for suite in suites:
        ranks.first(lambda: require_writable(folder / suite.name, folder=True))  # noqa: B023
    results: dict[str, Any] = {"model": shown(options.model)}
    tokenizer: Any = None
    graders: dict[str, Grader] = {}
    if suites:  # What can be refused is, before a model is loaded or a loss measured.
        tokenizer = find_tokenizer(options.model, options.load)
        suites = [suite.for_tokenizer(tokenizer) for suite in suites]
        graders = graders_of(options, suites)
    if options.engine == "vllm" or options.stored:
        if options.files:
            raise ConfigError("engine=vllm and stored=true measure no losses; leave --files out.")

        def asking(suite: str) -> Iterator[Target]:
            if options.stored:
                return stored_targets(Evaluation.load(folder / suite), tokenizer)
            return vllm_targets(options.model, options.reference, options.load.dtype)

    else:
        with stage(f"loading {options.model}"):
            model, tokenizer = load_model(options.model, options.load)
        if options.collapsed:
            _expanded(model, "collapsed")
        if options.alphas:
            expanded = _expanded(model, "alpha")
            if len(options.alphas) == 1:
                expanded.set_alpha(options.alphas[0])
        reference = reference_of(model, tokenizer, options.reference, options.load)
        if sources:
            sets = load_sets(sources, model, tokenizer, options.data, options.batch_size)
            tell_size(sets, settings=1)
            results["losses"] = _measure_losses(model, sets, reference, ranks)

        def asking(suite: str) -> Iterator[Target]:
            return targets_of(
                model,
                tokenizer,
                shown(options.model),
                reference=reference,
                reference_name=options.reference and shown(options.reference),
                alphas=options.alphas if len(options.alphas) > 1 else (),
                collapsed=options.collapsed,
                batch_size=options.batch_size,
            )

    if suites:
        results["suites"] = _ask(options, suites, graders, asking, ranks)
    if (output := options.output) is not None:
        ranks.first(lambda: write_json(output, results))


def _ask(
    options: EvalOptions,
    suites: Sequence[LoadedSuite],
    graders: dict[str, Grader],
    asking: Callable[[str], Iterator[Target]],
    ranks: Ranks,
) -> dict[str, Any]:
    """Ask all suites, show and save what came back; the numbers of each."""
    numbers = {}
    for suite in suites:
        found = evaluate_suite(
            suite.name,
            suite.benchmarks,
            asking(suite.name),
            store=store_of(options),
            ranks=ranks,
            graders=graders,
        )
        folder = folder_of(options, options.model) / suite.name
        ranks.first(lambda: save_evaluation(found, folder))  # noqa: B023
        _show(f"{readings_table(found)}\n\n{scores_table(found)}\n\nitems: {folder}", ranks)
        numbers[suite.name] = numbers_of(found)
    return numbers


def _expanded(model: PreTrainedModel, option: str) -> ControlLLMForCausalLM:
    if not isinstance(model, ControlLLMForCausalLM):
        raise ConfigError(f"{option} needs an expanded model; {type(model).__name__} is none.")
    return model


def _measure_losses(
    model: PreTrainedModel, sets: Sets, reference: Reference | None, ranks: Ranks
) -> dict[str, Any]:
    with progress("measuring", "batches", sum(map(len, sets.values()))):
        if reference is None:
            losses = {
                name: evaluate_losses(model, batches, ranks) for name, batches in sets.items()
            }
            found = {name: report.loss for name, report in losses.items()}
        else:
            reports = {
                name: measure_retention(model, batches, reference, ranks)
                for name, batches in sets.items()
            }
            found = {name: report.loss for name, report in reports.items()}
    if ranks.rank == 0:
        warn_if_not_finite(found, "the model")
    if reference is not None:
        _show(losses_table(reports), ranks)
        return {name: asdict(report) for name, report in reports.items()}
    rows: list[list[str | int | float | None]] = [
        [name, report.tokens, report.loss, report.perplexity] for name, report in losses.items()
    ]
    _show(format_table(["set", "tokens", "loss", "ppl"], rows), ranks)
    return {name: asdict(report) for name, report in losses.items()}


def _show(text: str, ranks: Ranks) -> None:
    """One of several processes shows what all have."""
    if ranks.rank == 0:
        print(text)
