"""Code that a model wrote: run behind walls that are tried first, judged where it cannot reach.

| module | what it does |
|---|---|
| `settings` | how much a program may use |
| `programs` | a completion becomes a program with its tests: HumanEval(+), MBPP, MBPP+ |
| `sandbox` | runs one program: a worker with the solution, a judge with the tests |
| `walled` | one process behind the walls, as seen from here |
| `inside` | what runs behind them |
| `checks` | every wall is tried, and what gets through is named |
| `runner` | many programs at once, in times scaled to the references' |
| `pass_at_k` | the unbiased estimate from n samples |

Nothing runs unless somebody asks for it: `code_runner("strict")`. docs/code-evaluation.md
"""

from controlllm.evaluate.code.checks import Walls, check_walls
from controlllm.evaluate.code.pass_at_k import mean_pass_at_k, pass_at_k
from controlllm.evaluate.code.programs import Program, human_eval, in_format, mbpp
from controlllm.evaluate.code.runner import CodeRunner, code_runner, run_programs
from controlllm.evaluate.code.sandbox import Outcome, Reason, run_program
from controlllm.evaluate.code.settings import SandboxSettings
from controlllm.evaluate.code.walled import SandboxError

__all__ = [
    "CodeRunner",
    "Outcome",
    "Program",
    "Reason",
    "SandboxError",
    "SandboxSettings",
    "Walls",
    "check_walls",
    "code_runner",
    "human_eval",
    "in_format",
    "mbpp",
    "mean_pass_at_k",
    "pass_at_k",
    "run_program",
    "run_programs",
]
