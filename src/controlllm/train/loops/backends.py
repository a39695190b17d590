"""Which loop trains. A back end is a function `(bench, keeper) -> TrainResult`."""

from collections.abc import Callable

from controlllm.common.registry import Registry
from controlllm.train.record.keeper import RunKeeper, TrainResult
from controlllm.train.setup.bench import Bench

__all__ = ["BACKENDS"]

BACKENDS: Registry[Callable[[Bench, RunKeeper], TrainResult]] = Registry("training.backend")
"""Back ends by the name used in the run config."""


@BACKENDS.register("native")
def _native(bench: Bench, keeper: RunKeeper) -> TrainResult:
    from controlllm.train.loops.native import NativeLoop

    return NativeLoop(bench, keeper).run()


@BACKENDS.register("hf")
def _hf(bench: Bench, keeper: RunKeeper) -> TrainResult:
    from controlllm.train.loops.hf import train_with_hf

    return train_with_hf(bench, keeper)
