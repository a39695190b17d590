"""Finding out what is wrong with a run: `debug` of the run config, made real.

| module | what it does |
|---|---|
| `profiling` | traces of chosen steps, snapshots of GPU memory |
| `anomaly` | finds the first module whose output or gradient is not finite |
| `watchdog`, `hangs` | tells which process hangs, and where |
| `recorder` | torch's own record of collectives |
"""

from controlllm.train.observe.debugging.debugger import Debugger
from controlllm.train.observe.debugging.recorder import prepare_recorder

__all__ = ["Debugger", "prepare_recorder"]
