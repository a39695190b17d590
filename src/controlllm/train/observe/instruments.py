"""What a run measures of itself: the time of each phase, FLOPs, memory; made into metrics.

clock.phase(...)   around what a back end does          |
count(batches)     once for each step                   |  plain numbers, no collectives
take(window)       once for each step, into its window  |
metrics(window)    once for each record                    two small collectives
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from controlllm.common.errors import ModelError
from controlllm.common.losses import target_mask
from controlllm.data import REHEARSAL
from controlllm.train.config.run_config import RunConfig
from controlllm.train.observe import metrics as names
from controlllm.train.observe.flops import FlopCount, Flops, sequence_lengths
from controlllm.train.observe.model_parts import parts_of
from controlllm.train.observe.peaks import Peak, peak_of
from controlllm.train.observe.progress import Window
from controlllm.train.observe.timing import STEP_PHASES, PhaseClock
from controlllm.train.parallel import World
from controlllm.train.step.losses import StepLoss

__all__ = ["Instruments"]

log = logging.getLogger(__name__)


class Instruments:
    """The instruments of one process; the model of the loss is on its device."""

    def __init__(self, run: RunConfig, loss: StepLoss, world: World) -> None:
        self.run, self.loss, self.world = run, loss, world
        model: Any = loss.model
        self.model: PreTrainedModel = model
        self.clock = PhaseClock(self.model.device)
        self._flops = Flops()
        self._peak: Peak | None = None
        self._count, self._count_base = _flop_counts(loss)

    def count(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Count the FLOPs of one step's micro-batches."""
        for batch in batches:
            if self._count is not None:
                predictions = (
                    int(target_mask(batch["labels"]).sum()) if self.loss.in_parts else None
                )
                self._flops += self._count.of(sequence_lengths(batch), predictions)
            if self._count_base is not None:
                asked = self._count_base.of(self._asked(batch))
                self._flops += Flops(forward=asked.forward)

    def take(self, window: Window, wait: bool = False) -> None:
        """Add what was measured since the last call to a window."""
        for phase, seconds in self.clock.take(wait).items():
            window.phases[phase] = window.phases.get(phase, 0.0) + seconds
        window.model_flops += self._flops.model
        window.hardware_flops += self._flops.hardware
        self._flops = Flops()

    def metrics(self, window: Window) -> dict[str, float]:
        """The split of a step, utilization and memory. Collective.

        Times are means over the steps of the window and the processes, memory is the largest of any
        process.
        """
        self.take(window, wait=True)
        world, seconds = self.world, max(window.seconds, 1e-9)
        own = [window.phases.get(phase, 0.0) for phase in STEP_PHASES]
        # Processes that compute blocks together count the FLOPs of the same rows.
        share = world.data_size / world.size
        *phases, model, hardware, peak = world.ranks.reduce(
            [*own, share * window.model_flops, share * window.hardware_flops, self._peak_flops()],
            "sum",
        )
        metrics = {names.STEP_SECONDS: seconds / window.steps}
        for phase, total in zip(STEP_PHASES, phases, strict=True):
            metrics[names.PHASE_SECONDS.format(phase)] = total / window.steps / world.size
        if self._count is not None:
            metrics[names.TFLOPS] = model / seconds / world.size / 1e12
            metrics[names.MFU] = model / seconds / peak
            metrics[names.HFU] = hardware / seconds / peak
        memory = names.memory_gib(self.model.device)
        return metrics | dict(zip(memory, world.max(list(memory.values())), strict=True))

    def _peak_flops(self) -> float:
        if self._peak is None:
            dtype = self.run.training.autocast_dtype or self.model.dtype
            self._peak = peak_of(self.model.device, dtype)
            log.info(
                "Peak of this device: %.3g TFLOP/s (%s)", self._peak.flops / 1e12, self._peak.source
            )
        return self._peak.flops

    def _asked(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The documents that the base computes: all for an anchor, and those that are rehearsed.

        The latter are taken to be as long as one can be.
        """
        every = torch.empty(0, dtype=torch.long)
        if self.loss.anchor is not None:
            every = sequence_lengths(batch)
        if self.loss.rehearsal_weight is None:
            return every
        tokens = int((batch["origin"] == REHEARSAL).sum())
        length = self.run.rehearsal.length or self.run.data.max_length
        whole, rest = divmod(tokens, length)
        return torch.cat([every, torch.tensor([length] * whole + [rest])])


def _flop_counts(loss: StepLoss) -> tuple[FlopCount | None, FlopCount | None]:
    """Of the model; and of its base, where a step asks it."""
    try:
        parts = parts_of(loss.model)
    except ModelError as error:
        log.info("FLOPs and utilization are not measured: %s", error)
        return None, None
    asks = loss.rehearsal_weight is not None or loss.anchor is not None
    return FlopCount(parts), FlopCount(p for p in parts if p.of_base) if asks else None
