"""Finding out what is wrong with a run: `debug` of the run config, made real.

anomaly    The first module whose output or gradient is not finite
debugger   What `debug` asks for, behind one face: it is told when training begins, steps, ends
hangs      Where processes are when nothing goes on, and which of them the others wait for
profiling  Traces of chosen steps, and snapshots of GPU memory
recorder   Torch's flight recorder: the last collectives of each process, written where one times
           out
watchdog   A thread that tells which process hangs, and where, instead of waiting for hours
"""

from controlllm.train.observe.debugging.debugger import Debugger
from controlllm.train.observe.debugging.recorder import prepare_recorder

__all__ = ["Debugger", "prepare_recorder"]
