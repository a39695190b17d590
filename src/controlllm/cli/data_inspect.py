"""`controlllm data inspect`: what a run is going to read, before anything is trained."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from controlllm.cli.data import groups, load_run_tokenizer
from controlllm.cli.train import parse_run
from controlllm.common.errors import DataError
from controlllm.common.storage.files import require_writable, write_json
from controlllm.common.text.progress import progress
from controlllm.common.text.readable import unguarded
from controlllm.train.config.run_config import RunConfig

if TYPE_CHECKING:
    from controlllm.data.inspect.mix import MixReport
    from controlllm.data.inspect.source import Survey
    from controlllm.data.loader.open_source import Size

__all__ = ["InspectData", "run"]


@dataclass
class InspectData(RunConfig):
    """Show what a run is going to read: sizes, lengths, what is left out, samples, and the mix.

    Takes the run file that `train` takes, and every setting of it. No model is loaded.
    """

    rows: int = 4096
    """Rows to read of each source, from chunks spread over it; 0 = all."""
    samples: int = 2
    """Examples of each source to show, with what is trained on."""
    output: str | None = None
    """JSON file to write the numbers to."""


def run(argv: list[str]) -> None:
    """Print each source as soon as it is read, then the mix."""
    options = parse_run(InspectData, argv, "data inspect")
    from rich.console import Console

    from controlllm.cli.data_show import Paper
    from controlllm.data import warn_of_overlaps
    from controlllm.data.inspect.source import SurveyOptions, survey_source

    if options.output is not None:
        require_writable(options.output)
    sources = list(groups(options))
    tokenizer = load_run_tokenizer(options)
    out = unguarded(sys.stdout)  # `Paper` makes texts readable by itself, and has colours.
    paper = Paper(Console(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True))
    surveys: list[Survey] = []
    for group, source in sources:
        with progress(f"reading {source.name}", "rows"):
            closely = SurveyOptions(options.rows, options.samples)
            surveys.append(survey_source(source, group, tokenizer, options.data, closely))
        paper.source(surveys[-1].report, options.data.max_length)
    mix = _mix(options, surveys)
    paper.mix(options.data, mix)
    overlaps = [asdict(overlap) for overlap in warn_of_overlaps(options.data)]
    reports = [survey.report for survey in surveys]
    if options.output is not None:
        found = {"sources": [r.to_dict() for r in reports], "mix": mix, "overlaps": overlaps}
        write_json(options.output, found)
    if failed := [report.name for report in reports if report.error]:
        raise DataError(f"{len(failed)} of {len(reports)} sources cannot be used: {failed}.")


def _mix(options: InspectData, surveys: Sequence["Survey"]) -> dict[str, Any] | None:
    """The mix with steps and passes, as JSON takes it; None where a source tells too little."""
    from controlllm.data.inspect.mix import passes, survey_mix, train_size

    training, rehearsal = options.training, options.rehearsal
    mixed = [survey for survey in surveys if survey.report.group in ("train", "replay")]
    share = rehearsal.share if rehearsal.enabled else 0.0
    mix = survey_mix(options.data, mixed, training.per_device_train_batch_size, share)
    if mix is None:
        return None
    reports = [survey.report for survey in mixed]
    size = train_size(options.data, reports)
    steps = _steps(options, size)
    seen = passes(options.data, mix, reports, steps * _items(options)) if steps else None
    return {
        **asdict(mix),
        "steps_per_epoch": _per_epoch(options, mix, size),
        "steps": steps,
        "passes": seen,
    }


def _steps(options: InspectData, size: "Size | None") -> float | None:
    """The steps that `train` is going to take."""
    from controlllm.train.setup.sizing import whole_steps

    epochs = options.training.num_train_epochs
    if epochs is None:
        return options.training.max_steps
    return whole_steps(options, size, epochs) if size else None


def _per_epoch(options: InspectData, mix: "MixReport", size: "Size | None") -> float | None:
    """Steps in which the train sources are gone through, by what the sample's batches hold."""
    if size is None:
        return None
    by_tokens = options.data.mix_by == "tokens"
    whole, item = (
        (size.tokens, mix.tokens_per_item) if by_tokens else (size.examples, mix.rows_per_item)
    )
    share = sum(mix.shares[-1][: len(options.data.train)])
    return whole / share / item / _items(options)


def _items(options: InspectData) -> int:
    """Slots or batches of one optimizer step on one device."""
    training = options.training
    slots = training.per_device_train_batch_size if options.data.packing else 1
    return slots * training.micro_batches()
