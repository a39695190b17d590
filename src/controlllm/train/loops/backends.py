"""Which loop trains. A back end is a function `(ready, recorder) -> TrainResult`."""

from controlllm.train.config.registries import BACKENDS
from controlllm.train.record.recorder import Recorder, TrainResult
from controlllm.train.setup.stages import Ready

__all__ = ["BACKENDS"]


@BACKENDS.register("native")
def _native(ready: Ready, recorder: Recorder) -> TrainResult:
    from controlllm.train.loops.native import NativeLoop

    return NativeLoop(ready, recorder).run()


@BACKENDS.register("hf")
def _hf(ready: Ready, recorder: Recorder) -> TrainResult:
    from controlllm.train.loops.hf import train_with_hf

    return train_with_hf(ready, recorder)
