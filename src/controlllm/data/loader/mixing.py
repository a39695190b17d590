"""Several streams -> one sequence of draws in which each source holds its share."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controlllm.common.errors import ConfigError
from controlllm.data.config.data_config import DataConfig
from controlllm.data.loader.collate import REHEARSAL, REPLAY, TRAIN
from controlllm.data.loader.draws import Count, Draw, StreamState, redeal_streams
from controlllm.data.loader.stream import Stream

__all__ = ["Mixer", "MixerState", "Plan", "Stage", "plan_shares", "redeal_mixers"]


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

    `sizes` are tokens (or rows) of each train and replay source, only asked for with a temperature;
    `rehearsal_share` is that of what the base wrote, 0 if there is none.

    Raises:
        ConfigError: there is no train source, or nothing is left for them.
    """
    if not config.train:
        raise ConfigError("data.train=[] names no source; there is nothing to learn from.")
    left = 1 - config.replay_share - rehearsal_share
    if left <= 0:
        raise ConfigError(
            f"shares replay={config.replay_share!r} and rehearsal={rehearsal_share!r} leave "
            "nothing for train; lower them."
        )
    power = 1.0 if config.temperature is None else 1 / config.temperature
    sources = [*config.train, *config.replay]
    if sizes is None or config.temperature is None:
        sizes = [1.0] * len(sources)  # Then sizes do not matter, only up-sampling does.
    own = [  # A source that looks empty is still asked, so that it is found to be.
        source.weight * (max(source.sample, 1.0) * max(size, 1.0)) ** power
        for source, size in zip(sources, sizes, strict=True)
    ]
    count = len(config.train)

    def shares(named: Mapping[str, float]) -> tuple[float, ...]:
        found: list[float] = []
        for part, weights, share in (
            (config.train, own[:count], left),
            (config.replay, own[count:], config.replay_share),
        ):
            told = [named.get(str(source.name), 0.0) for source in part]
            # A stage that names none of them leaves them their own.
            weights = told if any(told) else weights
            found += [share * weight / sum(weights) for weight in weights]
        return (*found, rehearsal_share) if rehearsal_share else tuple(found)

    stages = [Stage(shares(stage.weights), stage.tokens) for stage in config.stages]
    last = Stage(shares({}), float("inf"))
    origins = [TRAIN] * len(config.train) + [REPLAY] * len(config.replay)
    return Plan(tuple(origins + [REHEARSAL] * (rehearsal_share > 0)), (*stages, last))


@dataclass(frozen=True)
class MixerState:
    """Where a mixer stands; each list has a number for each source."""

    stage: Count
    """Which stage of the plan holds."""
    longest: Count
    """The most tokens (or rows) of one draw so far."""
    given: tuple[Count, ...]
    """Tokens (or rows) drawn in this stage."""
    drawn: tuple[Count, ...]
    """Examples drawn."""
    before: tuple[int, ...]
    """Tokens (or rows) drawn in the stages before; below 0 where one that left is made up for."""
    ended: tuple[bool, ...]
    """Whether the source has left the mix."""
    streams: tuple[StreamState, ...]
    """The stream of each source."""

    def __post_init__(self) -> None:
        """Refuse lists of different numbers of sources by a `ConfigError`."""
        lists = (self.given, self.drawn, self.before, self.ended, self.streams)
        if len(set(map(len, lists))) > 1:
            raise ConfigError("given, drawn, before, ended and streams must be equally long.")


class Mixer:
    """Draws from streams so that each holds its share at every moment, up to one example.

    No chance is involved in which stream is next. Of those that are not ahead of their share it is
    the one whose next example is due first, each taken for as long as the longest so far (the quota
    method of apportionment). So a few counters are the whole state.

    Where a source leaves the mix after its epochs, the others of its kind (train, replay) take over
    its share, so the share of replay stays what it was.

    The lanes go through the stages together.
    """

    def __init__(self, streams: Sequence[Stream], plan: Plan, by: str, lanes: int) -> None:
        self.streams, self.plan, self.by, self.lanes = list(streams), plan, by, lanes
        self.stage, self.longest = 0, 1
        self.given, self.drawn, self.before = ([0] * len(streams) for _ in range(3))
        self.ended = [False] * len(streams)
        self._find_left()

    def draw(self) -> Draw | None:
        """The next draw; None once all train sources have left the mix after their epochs."""
        while True:
            stage, total = self.plan.stages[self.stage], sum(self.given)
            if not self._trains and stage is self.plan.stages[-1]:
                return None
            if not self._trains or total * self.lanes >= stage.length:
                self._enter_next_stage()
                continue
            source = self._due(total)
            draw = self.streams[source].draw()
            if draw is None:
                self._end(source)
                continue
            amount = len(draw.example) if self.by == "tokens" else 1
            self.given[source] += amount
            self.longest = max(self.longest, amount)
            self.drawn[source] += 1
            return draw

    def _due(self, total: int) -> int:
        """The source whose next example is due first, of those that are not ahead."""
        if len(self._left) == 1:
            return self._left[0][0]
        longest = self.longest
        best, earliest = -1, math.inf
        for source, share in self._left:
            given = self.given[source]
            if given < share * (total + longest) and (due := (given + longest) / share) < earliest:
                best, earliest = source, due
        return best

    def _find_left(self) -> None:
        """Note (source, share) of those that are in the mix now, together 1."""
        shares, origins = self.plan.stages[self.stage].shares, self.plan.origins
        whole, left = defaultdict[int, float](float), defaultdict[int, float](float)
        for origin, share, ended in zip(origins, shares, self.ended, strict=True):
            whole[origin] += share
            left[origin] += 0.0 if ended else share
        total = sum(whole[origin] for origin in whole if left[origin])
        self._left = [
            (s, share * whole[origins[s]] / left[origins[s]] / total)
            for s, share in enumerate(shares)
            if share and not self.ended[s]
        ]
        self._trains = any(origins[s] == TRAIN for s, _ in self._left)

    def _enter_next_stage(self) -> None:
        """Shares count anew in each stage: what was given before must not be made up for."""
        self.before = [a + b for a, b in zip(self.before, self.given, strict=True)]
        self.given = [0] * len(self.given)
        self.stage += 1
        self._find_left()

    def _end(self, source: int) -> None:
        """Go on without a source, as if the others had always had the shares they have now."""
        self.ended[source] = True
        self._find_left()
        total = sum(self.given)
        anew = [0] * len(self.given)
        for s, share in self._left:
            anew[s] = int(share * total)
        if self._left:
            anew[self._left[0][0]] += total - sum(anew)
            self.before = [b + g - a for b, g, a in zip(self.before, self.given, anew, strict=True)]
            self.given = anew

    def state(self) -> MixerState:
        """Counters, and the state of each stream."""
        return MixerState(
            stage=self.stage,
            longest=self.longest,
            given=tuple(self.given),
            drawn=tuple(self.drawn),
            before=tuple(self.before),
            ended=tuple(self.ended),
            streams=tuple(stream.state() for stream in self.streams),
        )

    def load(self, state: MixerState) -> None:
        """Go on behind the draws that a state has counted; raises what `Stream.load` does."""
        self.stage, self.longest = state.stage, state.longest
        self.given, self.drawn = list(state.given), list(state.drawn)
        self.before, self.ended = list(state.before), list(state.ended)
        self._find_left()
        for stream, of_stream in zip(self.streams, state.streams, strict=True):
            stream.load(of_stream)


def redeal_mixers(states: Sequence[MixerState], lanes: int) -> list[MixerState]:
    """The states of the mixers of all lanes -> states for another number of lanes.

    Lanes that had not quite reached the last stage that any is in are taken to have; a source that
    has left some lanes may have rows left in others, so it is asked again.
    """
    stage = max(state.stage for state in states)
    none = (0,) * len(states[0].given)
    given, drawn, before = none, none, none
    for state in states:
        lags = state.stage < stage
        given = _sums(given, none if lags else state.given)
        before = _sums(before, state.before, state.given if lags else none)
        drawn = _sums(drawn, state.drawn)
    by_source = zip(*(state.streams for state in states), strict=True)
    streams = [redeal_streams(of_source, lanes) for of_source in by_source]

    def share(totals: tuple[int, ...], lane: int) -> tuple[int, ...]:
        return tuple((total + lane) // lanes for total in totals)

    return [
        MixerState(
            stage=stage,
            longest=max(state.longest for state in states),
            given=share(given, lane),
            drawn=share(drawn, lane),
            before=share(before, lane),
            ended=(False,) * len(none),
            streams=tuple(stream[lane] for stream in streams),
        )
        for lane in range(lanes)
    ]


def _sums(*counts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*counts, strict=True)))
