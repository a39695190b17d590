"""What `controlllm eval` does once its options are understood."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel

from controlllm.checkpoint import find_tokenizer, load_model
from controlllm.cli.kit.benchmarks import folder_of, graders_of, save_evaluation, store_of
from controlllm.cli.kit.eval_options import EvalOptions
from controlllm.cli.kit.reference import reference_of
from controlllm.cli.kit.sets import Sets, load_sets, tell_size
from controlllm.common.distributed import Ranks
from controlllm.common.errors import ConfigError
from controlllm.common.storage.files import require_writable, write_json
from controlllm.common.storage.remote import shown
from controlllm.common.text.progress import progress, stage
from controlllm.data import SourceConfig
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
from controlllm.evaluate.forgetting.losses import warn_if_not_finite
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM

__all__ = ["measure"]


def measure(
    options: EvalOptions,
    sources: list[SourceConfig],
    suites: Sequence[LoadedSuite],
    ranks: Ranks,
) -> None:
    """Measure what was asked for, show it, and write it.

    Raises:
        ConfigError: the model or what computes has no such thing as is asked for.
    """
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
