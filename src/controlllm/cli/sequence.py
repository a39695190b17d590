"""`controlllm sequence`: what became of each task in runs that went on from one another."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlllm.checkpoint import LoadOptions
from controlllm.cli.kit.parsing import parse_options
from controlllm.cli.kit.sets import Sets, allow_packed, run_defaults, tell_size
from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, rules_of, setting
from controlllm.common.settings import check_said
from controlllm.common.storage.files import require_writable, write_json
from controlllm.common.storage.remote import is_remote, shown
from controlllm.common.text.progress import stage
from controlllm.data import DataConfig, SourceConfig
from controlllm.evaluate.own_text import OwnTextConfig
from controlllm.expansion.files.records import BASE, read_sidecar_config
from controlllm.train.config.config_io import build

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from controlllm.evaluate.sequence.measuring import Loader

__all__ = ["SEQUENCE_UNREAD", "SequenceOptions", "run"]

log = logging.getLogger(__name__)

SEQUENCE_UNREAD = ("own_text.precision", "own_text.max_sequences")
"""Settings of certificates, which `sequence` gives none of."""


@dataclass
class SequenceOptions:
    """Measure every run of a sequence on what each of them learned, beside their base.

    The table has a row for the base and for each run, a column for each run's held-out sets
    (data.learn of its config.yaml); below it ACC, BWT, FWT, F and, with --joint, intransigence; and
    what became of what the base knew: its own text, and the runs' data.retain.
    """

    runs: list[str]
    """Run folders in the order in which they learned, the first one first."""
    joint: str | None = None
    """A run that learned all tasks at once (`continue_by: joint`), to compare with."""
    reference: str | None = None
    """Base of a first run that does not carry it (no expansion, no adapters)."""
    output: str | None = None
    """Folder for sequence.json and sequence.png; null = `sequence` in the last run."""
    own_text: OwnTextConfig = field(default_factory=OwnTextConfig)
    """What the base writes to be measured on; measure=false leaves it out."""
    batch_size: int = setting(8, at_least=1)
    """Rows of one batch."""
    load: LoadOptions = field(default_factory=lambda: LoadOptions(device="auto"))
    """How the models are loaded."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "")
        for rule in rules_of(OwnTextConfig):
            own = replace(rule, reads=lambda own: own.measure is not False)
            check_said(self.own_text, [own], where="own_text")
        if len(self.runs) < 2:
            raise ConfigError("a sequence has two runs at least: controlllm sequence runs/a runs/b")
        names = [_name(run) for run in self.runs]
        for name in names:
            if name == BASE or names.count(name) > 1:
                raise ConfigError(
                    f"the run {name!r} would have the name of another row; give each run a folder "
                    f"of a name of its own, other than {BASE!r}."
                )


def run(argv: list[str]) -> None:
    """Measure, print the tables, and write numbers and picture."""
    data: dict[str, DataConfig] = {}

    def read_runs(given: dict[str, Any], trusts: bool) -> dict[str, Any]:
        """What each run's config says of its data; nothing is laid below the options."""
        for run in given.get("runs", []):
            of_run = {"model": run, "load": given.get("load", {})}
            values = run_defaults(of_run, trusts, repeatable=False)
            data[_name(run)] = build(DataConfig, values.get("data", {}))
        return {}

    options = parse_options(SequenceOptions, argv, "sequence", read_runs, unread=SEQUENCE_UNREAD)
    for run in options.runs:
        if not data[_name(run)].learn:
            raise ConfigError(
                f"{shown(run)} has no held-out sets that are read (data.learn in its config.yaml), "
                "so that what it learned cannot be measured."
            )
    folder = _output(options)
    require_writable(folder, folder=True)
    _tell_order([run for run in options.runs if not is_remote(run)])
    _measure(options, data, folder)


def _tell_order(runs: list[str]) -> None:
    """Warn of runs that record another order than they are given in."""
    from controlllm.checkpoint import KINDS, locate, saved_apart
    from controlllm.expansion.files.lineage import folded_parent

    before = None
    for run in runs:
        apart = saved_apart(locate(run))
        values = (
            read_sidecar_config(apart.folder) if apart and apart.kind is KINDS["control"] else {}
        )
        parents = values.get("parents", [])
        last = parents[-1]["name"] if parents else None
        if before is None and folded_parent(parents) is not None:
            log.warning(
                "%s was trained on a stage that is folded into its base: the row %r is that stage. "
                "Begin with the run that went on from the first base.",
                run,
                BASE,
            )
        elif before is not None and last not in (None, _name(before)):
            log.warning("%s records that it went on from %r, not from %s.", run, last, before)
        before = run


def _measure(options: SequenceOptions, data: Mapping[str, DataConfig], folder: Path) -> None:
    from controlllm.checkpoint import find_tokenizer, load_model
    from controlllm.cli.kit.reference import reference_of
    from controlllm.evaluate.forgetting.losses import warn_if_not_finite
    from controlllm.evaluate.sequence.measuring import measure_sequence
    from controlllm.evaluate.sequence.picture import plot_matrix
    from controlllm.evaluate.sequence.tables import (
        kept_table,
        matrix_record,
        matrix_table,
        numbers_table,
    )

    first = options.runs[0]
    with stage(f"loading the base of {first}"):
        carrier, tokenizer = load_model(first, options.load)
    reference = reference_of(carrier, tokenizer, options.reference, options.load)
    if reference is None:
        raise ConfigError(f"{shown(first)} does not carry its base: name it, --reference.")
    tasks: Sets = {
        name: _batches(one.learn, find_tokenizer(run, options.load), one, options.batch_size)
        for run, (name, one) in zip(options.runs, data.items(), strict=True)
    }
    _require_tokens(carrier if reference.copy is None else reference.copy, tasks)
    kept = _kept(options, carrier, tokenizer, data, folder)
    tell_size({**tasks, **kept}, settings=len(options.runs))

    def loader(run: str) -> "Loader":
        def load() -> "PreTrainedModel":
            with stage(f"loading {run}"):
                model, _ = load_model(run, options.load)
            for one in data.values():
                allow_packed(model, one)
            return model

        return load

    for one in data.values():
        allow_packed(carrier, one)
    stages = {_name(run): loader(run) for run in options.runs}
    joint = None if options.joint is None else loader(options.joint)
    with reference.active() as base:
        matrix, reports = measure_sequence(base, stages, tasks, kept, joint)
    for row, measured in [*matrix.losses.items(), ("all at once", matrix.joint or {})]:
        losses = {task: one.loss for task, one in measured.items()}
        losses |= {name: report.loss for name, report in reports.get(row, {}).items()}
        warn_if_not_finite(losses, row if row == BASE else f"after {row}")
    write_json(folder / "sequence.json", matrix_record(matrix, reports))
    tables = [matrix_table(matrix), numbers_table(matrix), kept_table(reports) if kept else ""]
    print("\n\n".join(filter(None, tables)))
    plot_matrix(matrix, folder / "sequence.png")
    print(f"\nNumbers and picture: {folder}")


def _kept(
    options: SequenceOptions,
    carrier: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: Mapping[str, DataConfig],
    folder: Path,
) -> Sets:
    """The base's own text, and the sets that runs were to retain, by name."""
    from controlllm.data import eval_batches
    from controlllm.evaluate.own_text import Writer, write_own_text
    from controlllm.train.setup.ways.earlier import same_rows

    kept: Sets = {}
    first = next(iter(data.values()))
    if options.own_text.measure is not False:
        place = options.own_text.cache_dir or folder / "own_text"
        written = write_own_text(Writer.base(carrier), tokenizer, options.own_text, first, place)
        plain = replace(first, packing=False)
        for name, examples in written.items():
            kept[name] = eval_batches(examples, tokenizer, plain, options.batch_size)
    known: list[SourceConfig] = []
    for run, one in data.items():
        for source in one.retain:
            if not any(same_rows(source, other) for other in known):
                name = f"{run}/{source.name}" if source.name in kept else str(source.name)
                kept[name] = _batches([source], tokenizer, one, options.batch_size)
                known.append(source)
    return kept


def _batches(
    sources: list[SourceConfig], tokenizer: "PreTrainedTokenizerBase", data: DataConfig, rows: int
) -> list[Any]:
    from controlllm.data import eval_batches
    from controlllm.data.loader.plugins import load_plugins

    load_plugins(data)
    batches: list[Any] = []
    for source in sources:
        with stage(f"reading {source.name}"):
            batches += eval_batches(source, tokenizer, data, rows)
    return batches


def _require_tokens(model: Any, tasks: Sets) -> None:
    """Check that the base that a model carries, or is, knows all tokens of the tasks."""
    config = model.config
    config = config.base_config() if hasattr(config, "base_config") else config
    rows = config.get_text_config(decoder=True).vocab_size
    for task, batches in tasks.items():
        if max(int(batch["input_ids"].max()) for batch in batches) >= rows:
            raise ConfigError(
                f"the run {task} has tokens that the base of the first run does not know (it has "
                f"{rows:,}): they cannot be compared on its sets."
            )


def _output(options: SequenceOptions) -> Path:
    last = options.runs[-1]
    if options.output is None and is_remote(last):
        raise ConfigError(f"{shown(last)} lies on another machine; name a local folder: --output.")
    return Path(options.output or Path(last) / "sequence")


def _name(run: str) -> str:
    """A run's folder, by which its task is called."""
    return run.rstrip("/").rpartition("/")[2] or run
