"""The mix, looked at before training: shares by the plan, and how full the batcher's items are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controlllm.data.cache.store import TokenStore
from controlllm.data.config.data_config import DataConfig
from controlllm.data.inspect.report import SourceReport
from controlllm.data.inspect.source import Survey
from controlllm.data.loader.batchers import fill_ratio, item_tokens
from controlllm.data.loader.lane import Lane, Pipeline
from controlllm.data.loader.mixing import Plan, plan_shares
from controlllm.data.loader.open_source import Size, store_feed, sum_sizes

__all__ = ["MixReport", "passes", "survey_mix", "train_size"]

ITEMS = 256
"""Slots or batches that the sample is made into."""


@dataclass(frozen=True)
class MixReport:
    """How the sources of a run are mixed and batched."""

    names: list[str]
    """The sources: train, replay, then `rehearsal` if there is any."""
    shares: list[list[float]]
    """Share of each source, stage by stage."""
    stage_lengths: list[float | None]
    """Tokens (or rows) of each stage; None for the last, which does not end."""
    items: int
    """Slots (packed) or batches (padded) that were made of the sample."""
    tokens_per_item: float
    """Real tokens of one."""
    rows_per_item: float
    """Examples, or pieces of them, in one."""
    fill: float
    """Real tokens per token of the tensors: packing efficiency, or 1 - share of padding."""
    repeated_bos: float
    """BOS before the rests of documents that `concat` cut, per real token."""


def survey_mix(
    config: DataConfig, surveys: Sequence[Survey], batch_size: int, rehearsal_share: float = 0.0
) -> MixReport | None:
    """Mix and batch the examples of a sample, with the parts that train uses.

    None where a source has no example, or the temperature asks for a size that is not known.

    Raises:
        ConfigError: the shares leave nothing for train.
    """
    sizes = [_size(survey.report, config) for survey in surveys]
    unknown = config.temperature is not None and None in sizes
    if unknown or not all(survey.examples for survey in surveys):
        return None
    known = [size or 0.0 for size in sizes] if config.temperature is not None else None
    plan = plan_shares(config, known, rehearsal_share)
    last = plan_shares(config, known)
    last = Plan(last.origins, last.stages[-1:])
    names = [survey.report.name for survey in surveys]
    stores = [TokenStore.from_examples(one.report.name, one.examples) for one in surveys]
    feeds = [store_feed(store.name, store, config, [0, i]) for i, store in enumerate(stores)]
    lane = Lane(Pipeline(feeds, last, config, batch_size, 0, surveys[0].bos), 0, 1)
    items = [lane.next() for _ in range(ITEMS)]
    rows = sum(len(slot) for item in items for slot in item)
    return MixReport(
        names=names + ["rehearsal"] * (rehearsal_share > 0),
        shares=[list(stage.shares) for stage in plan.stages],
        stage_lengths=[*(stage.length for stage in plan.stages[:-1]), None],
        items=ITEMS,
        tokens_per_item=sum(map(item_tokens, items)) / ITEMS,
        rows_per_item=rows / ITEMS,
        fill=fill_ratio(items, config),
        repeated_bos=lane.batcher.repeated_bos / sum(map(item_tokens, items)),
    )


def passes(
    config: DataConfig, mix: MixReport, reports: Sequence[SourceReport], items: float
) -> list[float | None]:
    """How often a run goes through each source; None where its size is not known."""
    left = items * (mix.tokens_per_item if config.mix_by == "tokens" else mix.rows_per_item)
    drawn = np.zeros(len(mix.names))
    for shares, length in zip(mix.shares, mix.stage_lengths, strict=True):
        taken = left if length is None else min(left, length)
        drawn += taken * np.array(shares)
        left -= taken
    sizes = [_size(report, config) for report in reports]
    return [float(part / size) if size else None for part, size in zip(drawn, sizes, strict=False)]


def train_size(config: DataConfig, reports: Sequence[SourceReport]) -> Size | None:
    """Examples and tokens of one epoch of all train sources; None where one is not known."""
    sizes = []
    for report in reports[: len(config.train)]:
        if report.examples is None or report.tokens is None:
            return None
        sizes.append(Size(report.examples, report.tokens, report.complete))
    return sum_sizes(sizes, [max(source.sample, 1.0) for source in config.train])


def _size(report: SourceReport, config: DataConfig) -> float | None:
    return report.tokens if config.mix_by == "tokens" else report.examples
