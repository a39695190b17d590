"""The hook that measures: learning and forgetting on the held-out sets."""

import logging
from collections.abc import Callable, Mapping

from controlllm.evaluate import warn_if_not_finite
from controlllm.expansion import ControlLLMForCausalLM
from controlllm.probe import probe_scalars
from controlllm.train.observe.metrics import probe_metrics
from controlllm.train.observe.retention import Measurement, better
from controlllm.train.observe.timing import EVALUATION, PhaseClock
from controlllm.train.record.descriptions import stage_table
from controlllm.train.record.evaluation_time import EvaluationTime
from controlllm.train.record.hooks import Callback, RunState

__all__ = ["Evaluation"]

log = logging.getLogger(__name__)


class Evaluation(Callback):
    """Measures before the first step, every `training.eval_steps`, and after the last step.

    A signal ends a run without a last measurement, for which there may be no time. `announce` is
    told the metrics of each measurement.

    Attributes:
        improved: whether the last step is the best one so far.
        last: what was measured last, and after which step; None before.
    """

    def __init__(
        self,
        clock: PhaseClock,
        time: EvaluationTime,
        announce: Callable[[Mapping[str, float]], None],
    ) -> None:
        self.clock, self.time, self.announce = clock, time, announce
        self.improved = False
        self.last: tuple[int, Measurement] | None = None

    def begin(self, state: RunState) -> None:
        """Measure the model that is not trained yet."""
        if state.step == 0 and state.ready.meter.enabled:
            self.announce(self._measure(state).metrics)

    def after_step(self, state: RunState) -> None:
        """Measure every `training.eval_steps`, and note whether this step is the best so far."""
        self.improved = False
        due = state.stopped or state.step % state.run.training.eval_steps == 0
        if not (due and state.ready.meter.enabled):
            return
        measurement = self._measure(state)
        if state.stopped and state.is_first and measurement.losses_at:
            log.info("Loss of each stage on each set:\n%s", stage_table(measurement))
        progress, budget = state.progress, state.run.training.max_forgetting
        best = better(state.step, measurement, progress.best, budget)
        self.improved = best is not None
        progress.best = best or progress.best
        self.announce(measurement.metrics)

    def _measure(self, state: RunState) -> Measurement:
        ready = state.ready
        with self.clock.phase(EVALUATION), self.time.counted(state), ready.autocast():
            measurement = ready.meter.measure()
            probed = _probed(state)
        state.world.reshard(state.model)
        self.last = (state.step, measurement)
        state.progress.forgetting = measurement.by_stage
        state.log(measurement.metrics | probed)
        if state.is_first:
            reports = {**measurement.learn, **measurement.retain}
            losses = {name: report.loss for name, report in reports.items()}
            warn_if_not_finite(losses, f"step {state.step}")
        return measurement


def _probed(state: RunState) -> dict[str, float]:
    """How far the branches are apart, on the first batch of each set; nothing if not asked for."""
    if not state.run.logging.probes or not isinstance(state.model, ControlLLMForCausalLM):
        return {}
    meter = state.ready.meter
    found: dict[str, float] = {}
    for name, batches in {**meter.retain, **meter.learn}.items():
        found |= probe_metrics(name, probe_scalars(state.model, batches[0]))
    return found
