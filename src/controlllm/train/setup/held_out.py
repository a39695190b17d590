"""The held-out sets of a run, and of the runs that it goes on from: what is measured.

A set belongs to the stage that learned it, and is compared with that stage: what an earlier run
held out to see what it learned is what a later one may forget.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError, DataError
from controlllm.data import Batch, Example, SourceConfig, eval_batches, read_examples
from controlllm.train.config.run_config import RunConfig
from controlllm.train.setup.ways.contract import BASE, Stage
from controlllm.train.setup.ways.earlier import earlier_data, same_rows

__all__ = ["HeldOut", "read_held_out"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Batches by the name of their set.

    Attributes:
        learn: what is to be learned.
        retain: what is to be kept; the sets of an earlier stage `a` are called `a/...`.
        owners: the stage of each retain set that does not belong to the base.
    """

    learn: dict[str, list[Batch]] = field(default_factory=dict)
    retain: dict[str, list[Batch]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)


def read_held_out(
    run: RunConfig,
    stages: Sequence[Stage],
    own_text: Mapping[str, Sequence[Example]],
    tokenizer: PreTrainedTokenizerBase,
) -> HeldOut:
    """Read all sets, `own_text` beside them; they are kept in memory.

    Sets of earlier stages whose data is gone are told and left out.

    Raises:
        DataError: a set of the run itself is missing, empty or unreadable.
        ConfigError: the budget names a stage of which there is no set.
    """
    found, rows = HeldOut(), run.training.per_device_eval_batch_size
    for source in run.data.learn:
        found.learn[str(source.name)] = _read(source, str(source.name), tokenizer, run)
    for source in run.data.retain:
        found.retain[str(source.name)] = _read(source, str(source.name), tokenizer, run)
    for name, examples in own_text.items():
        found.retain[name] = eval_batches(examples, tokenizer, run.data, rows)
        if "/" in name:
            found.owners[name] = name.partition("/")[0]
    for stage in stages:
        for source in _learned(stage):
            named = next((own for own in run.data.retain if same_rows(own, source)), None)
            if named is not None:
                found.owners.setdefault(str(named.name), stage.name)
                continue
            name = f"{stage.name}/{source.name}"
            if name in found.retain:
                raise ConfigError(
                    f"data.retain has a set called {name!r}, which is the name of what the stage "
                    f"{stage.name!r} held out; give it another `name`."
                )
            try:
                found.retain[name] = _read(source, name, tokenizer, run)
            except (DataError, ConfigError) as error:
                log.warning("%s is not measured, as it cannot be read: %s", name, error)
            else:
                found.owners[name] = stage.name
    _check_budget(run, found)
    return found


def _learned(stage: Stage) -> list[SourceConfig]:
    """What an earlier run held out; nothing where that is not known, which is told."""
    if stage.folder is None:
        return []
    why = f"there is no config.yaml in {stage.folder}."
    try:
        if (data := earlier_data(stage.folder)) is not None:
            return data.learn
    except ConfigError as error:
        why = str(error)
    log.warning(
        "What the stage %s held out is not known: %s Name it under data.retain.", stage.name, why
    )
    return []


def _read(
    source: SourceConfig, name: str, tokenizer: PreTrainedTokenizerBase, run: RunConfig
) -> list[Batch]:
    examples, stats = read_examples(source, tokenizer, run.data)
    tokens = sum(map(len, examples))
    read = f"{len(examples):,} examples of {tokens:,} tokens are measured"
    log.info("Evaluation set %s: %s; %s", name, read, stats.describe())
    return eval_batches(examples, tokenizer, run.data, run.training.per_device_eval_batch_size)


def _check_budget(run: RunConfig, found: HeldOut) -> None:
    budget = run.training.max_forgetting
    measured = {found.owners.get(name, BASE) for name in found.retain}
    for stage in budget if isinstance(budget, dict) else ():
        if stage not in measured:
            raise ConfigError(
                f"training.max_forgetting has a budget for {stage!r}, of which nothing that was "
                "held out can be measured; name a set of it under data.retain, or leave it out."
            )
