"""Step 6: several streams -> one sequence of draws in which each source holds its share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.data.batches import REHEARSAL, REPLAY, TRAIN
from controlllm.data.config import DataConfig
from controlllm.data.encode import Example
from controlllm.data.stream import Drawn, Reference, Stream

__all__ = ["Mixer", "Picked", "Plan", "Stage", "plan_shares"]

Picked = tuple[int, Reference, Example]
"""(source, reference, example): a draw from the mix."""


@dataclass(frozen=True)
class Stage:
    """Shares that hold for a while."""

    shares: tuple[float, ...]
    """Share of each source; together 1."""

    length: float
    """Tokens (or rows) of the stage, all lanes together; infinite for the last."""


@dataclass(frozen=True)
class Plan:
    """How sources are mixed over a run: train, then replay, then rehearsal."""

    origins: tuple[int, ...]
    """`TRAIN`, `REPLAY` or `REHEARSAL` for each source."""

    stages: tuple[Stage, ...]
    """One after the other."""


def plan_shares(
    config: DataConfig, sizes: Sequence[float] | None, rehearsal_share: float = 0.0
) -> Plan:
    """Turn weights into shares of the whole mix.

    Args:
        config: its `train` and `replay` sources with their weights, `replay_share`, `temperature`
            and `stages`.
        sizes: tokens (or rows) of each train and replay source; only asked for with a temperature.
        rehearsal_share: share of what the base wrote, 0 if there is none.

    Raises:
        ConfigError: there is no train source, or nothing is left for them.
    """
    if not config.train:
        raise ConfigError("data.train=[] names no source; there is nothing to learn from.")
    left = 1 - config.replay_share - rehearsal_share
    if left <= 0:
        raise ConfigError(
            f"shares replay={config.replay_share!r} and rehearsal={rehearsal_share!r} leave "
            "nothing for train."
        )
    groups = ((config.train, left), (config.replay, config.replay_share))
    power = 1 / config.temperature if config.temperature else 0.0
    sources = [*config.train, *config.replay]
    own = [
        source.weight * max(source.sample, 1.0) ** (power or 1.0) * (size**power if power else 1.0)
        for source, size in zip(sources, sizes or [1.0] * len(sources), strict=True)
    ]
    stages = [
        Stage(_shares(groups, _staged(groups, own, stage.weights), rehearsal_share), stage.tokens)
        for stage in config.stages
    ]
    last = Stage(_shares(groups, own, rehearsal_share), float("inf"))
    origins = [TRAIN] * len(config.train) + [REPLAY] * len(config.replay)
    return Plan(tuple(origins + [REHEARSAL] * (rehearsal_share > 0)), (*stages, last))


def _staged(groups: Any, own: Sequence[float], weights: dict[str, float]) -> list[float]:
    """A stage's weights for each group that it names a source of; the others keep their own."""
    result: list[float] = []
    for sources, _ in groups:
        named = [weights.get(str(source.name), 0.0) for source in sources]
        result += named if any(named) else own[len(result) : len(result) + len(sources)]
    return result


def _shares(groups: Any, weights: Sequence[float], rehearsal: float) -> tuple[float, ...]:
    shares: list[float] = []
    for sources, share in groups:
        part = weights[len(shares) : len(shares) + len(sources)]
        shares += [share * weight / sum(part) for weight in part]
    return tuple(shares + ([rehearsal] if rehearsal else []))


class Mixer:
    """Draws from streams so that each holds its share at every moment, up to one example.

    No chance is involved in which stream is next: it is the one furthest behind its share. So a few
    counters are the whole state.

    Args:
        streams: what to draw from.
        plan: their shares, stage by stage.
        by: what shares count, `tokens` or `rows`.
        lanes: number of lanes that go through the stages together.
    """

    def __init__(self, streams: Sequence[Stream], plan: Plan, by: str, lanes: int) -> None:
        self.streams = list(streams)
        self.plan = plan
        self.by = by
        self.lanes = lanes
        self.stage = 0
        self.given = [0] * len(self.streams)
        self.drawn = [0] * len(self.streams)
        self.before = [0] * len(self.streams)
        self._ended = [False] * len(self.streams)

    def draw(self) -> Picked | None:
        """The next draw; None once all train sources have left the mix after their epochs."""
        while True:
            stage = self.plan.stages[self.stage]
            shares = stage.shares
            ready = [s for s, share in enumerate(shares) if share and not self._ended[s]]
            nothing_left = not any(self.plan.origins[s] == TRAIN for s in ready)
            if nothing_left and stage is self.plan.stages[-1]:
                return None
            if nothing_left or sum(self.given) * self.lanes >= stage.length:
                self._enter_next_stage()
                continue
            source = min(ready, key=lambda s: self.given[s] / shares[s])
            drawn = self.streams[source].draw()
            if drawn is not None:
                return self._count(source, drawn)
            self._ended[source] = True

    def _enter_next_stage(self) -> None:
        """Shares count anew in each stage: what was given before must not be made up for."""
        self.before = [a + b for a, b in zip(self.before, self.given, strict=True)]
        self.given = [0] * len(self.given)
        self.stage += 1

    def _count(self, source: int, drawn: Drawn) -> Picked:
        self.given[source] += len(drawn.example) if self.by == "tokens" else 1
        self.drawn[source] += 1
        return source, drawn.reference, drawn.example

    def state_dict(self) -> dict[str, Any]:
        """Counters, and the state of each stream."""
        return {
            "stage": self.stage,
            "given": [*self.given],
            "drawn": [*self.drawn],
            "before": [*self.before],
            "streams": [stream.state_dict() for stream in self.streams],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the draws that a state has counted."""
        self.stage = state["stage"]
        self.given, self.drawn = list(state["given"]), list(state["drawn"])
        self.before = list(state["before"])
        for stream, values in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(values)
