"""`controlllm eval`: what a model learned and forgot, base and trained side by side."""

from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedModel

from controlllm.checkpoint import LoadOptions, load_model
from controlllm.cli.kit.parsing import parse_options
from controlllm.cli.kit.sets import UNREAD, Sets, as_list, load_sets, run_defaults, tell_size
from controlllm.common.adapters import carries_base
from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.settings import RUNS_CODE, Rule, check_said
from controlllm.common.storage.files import require_writable, write_json
from controlllm.common.storage.remote import shown
from controlllm.common.text.progress import progress, stage
from controlllm.data import DataConfig, SourceConfig
from controlllm.evaluate import (
    HarnessConfig,
    Reference,
    evaluate_losses,
    find_tasks,
    format_table,
    losses_table,
    measure_retention,
    run_tasks,
)
from controlllm.evaluate.forgetting.dial import check_settings
from controlllm.evaluate.forgetting.losses import warn_if_not_finite
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM

__all__ = ["EvalOptions", "run"]

_OF_TASKS = tuple(
    Rule(name, lambda options: bool(options.tasks), "only --tasks reads it; leave it out")
    for name in ("include_path", "num_fewshot", "limit", "apply_chat_template")
)


@dataclass
class EvalOptions:
    """Measure loss and perplexity on files, and run lm-eval tasks, for base and trained model.

    A run folder brings its own sets (data.learn, data.retain) along.
    """

    model: str
    """Run folder, checkpoint, sidecar, model folder or Hub name."""
    files: str | list[str] = field(default_factory=list)
    """Files to measure the loss on, with commas between them (or a list)."""
    data: DataConfig = field(default_factory=DataConfig)
    """How files are read; data.learn and data.retain are measured too."""
    tasks: str | list[str] = field(default_factory=list)
    """Tasks of lm-evaluation-harness, with commas between them (or a list)."""
    include_path: str | list[str] = field(default_factory=list, metadata=RUNS_CODE)
    """Folders with further task files."""
    num_fewshot: int | None = None
    """Examples before each question; null = as the task says."""
    limit: int | None = None
    """Questions of each task; null = all."""
    apply_chat_template: bool = False
    """Put the questions of tasks as chat messages."""
    batch_size: int = setting(8, at_least=1)
    """Rows of one batch."""
    alpha: float | None = None
    """Alpha to measure at; null = as it was saved."""
    reference: str | None = None
    """Base to compare a model with that does not carry it (no expansion, no adapters)."""
    output: str | None = None
    """JSON file to write all numbers to."""
    load: LoadOptions = field(default_factory=lambda: LoadOptions(device="auto"))
    """How the model is loaded."""

    def __post_init__(self) -> None:
        """Check the values, and that what is said is used.

        Raises:
            ConfigError: with the option and what to do.
        """
        check_settings("alpha", [self.alpha])
        check_values(self, "")
        check_said(self, _OF_TASKS)


def run(argv: list[str]) -> None:
    """Measure, print tables, and write the numbers if asked."""
    options = parse_options(EvalOptions, argv, "eval", run_defaults, unread=UNREAD)
    if options.output is not None:
        require_writable(options.output)
    sources = [SourceConfig(path=path) for path in as_list(options.files)]
    sources += [*options.data.learn, *options.data.retain]
    if not sources and not options.tasks:
        raise ConfigError(
            "nothing to measure: give --files, --data.learn, --data.retain or --tasks."
        )
    _check_names(sources)
    harness = _harness(options)
    tasks = find_tasks(harness) if harness is not None else None
    with stage(f"loading {options.model}"):
        model, tokenizer = load_model(options.model, options.load)
    if options.alpha is not None:
        _expanded(model).set_alpha(options.alpha)
    reference = _reference(model, options)
    results: dict[str, Any] = {"model": shown(options.model)}
    if sources:
        sets = load_sets(sources, model, tokenizer, options.data, options.batch_size)
        tell_size(sets, settings=1)
        results["losses"] = _measure_losses(model, sets, reference)
    if harness is not None:
        report = run_tasks(model, tokenizer, harness, reference, tasks)
        print(report.table())
        results["tasks"] = report.to_dict()
    if options.output is not None:
        write_json(options.output, results)


def _check_names(sources: list[SourceConfig]) -> None:
    names = [source.name for source in sources]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{twice} name several sets (--files takes a file's name, beside the sets of the run); "
            "give each its own `name`: --data.learn '[{path: ..., name: ...}]'."
        )


def _expanded(model: PreTrainedModel) -> ControlLLMForCausalLM:
    if not isinstance(model, ControlLLMForCausalLM):
        raise ConfigError(f"alpha needs an expanded model; {type(model).__name__} is none.")
    return model


def _reference(model: PreTrainedModel, options: EvalOptions) -> Reference | None:
    if options.reference is not None:
        return Reference(model, copy=load_model(options.reference, options.load)[0])
    return Reference(model) if carries_base(model) else None


def _measure_losses(
    model: PreTrainedModel, sets: Sets, reference: Reference | None
) -> dict[str, Any]:
    with progress("measuring", "batches", sum(map(len, sets.values()))):
        if reference is None:
            losses = {name: evaluate_losses(model, batches) for name, batches in sets.items()}
            found = {name: report.loss for name, report in losses.items()}
        else:
            reports = {name: measure_retention(model, b, reference) for name, b in sets.items()}
            found = {name: report.loss for name, report in reports.items()}
    warn_if_not_finite(found, "the model")
    if reference is not None:
        print(losses_table(reports))
        return {name: asdict(report) for name, report in reports.items()}
    rows: list[list[str | int | float | None]] = [
        [name, report.tokens, report.loss, report.perplexity] for name, report in losses.items()
    ]
    print(format_table(["set", "tokens", "loss", "ppl"], rows))
    return {name: asdict(report) for name, report in losses.items()}


def _harness(options: EvalOptions) -> HarnessConfig | None:
    if not options.tasks:
        return None
    return HarnessConfig(
        tasks=as_list(options.tasks),
        include_path=as_list(options.include_path),
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        batch_size=options.batch_size,
        apply_chat_template=options.apply_chat_template,
    )
