"""Finding out what is wrong with a run: `debug` of the run config, made real.

anomaly    The first module whose output or gradient is not finite
debugger   What `debug` asks for, behind one face, told when training begins, steps, ends; torch's
           flight recorder
profiling  Traces of chosen steps, and snapshots of GPU memory
watchdog   A thread that tells which process hangs, and where, instead of waiting for hours
"""

from controlllm.train.observe.debugging.debugger import Debugger, prepare_recorder

__all__ = ["Debugger", "prepare_recorder"]
