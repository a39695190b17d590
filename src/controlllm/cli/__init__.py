"""The command line: `controlllm <verb>`. Thin: it parses, calls one function and tells errors.

Each verb is a module with `run(argv)`, imported only when it is asked for, so that `--help` is
quick. It returns the exit code where that says more than that all went well. Errors that this
library raises on purpose are one line on stderr with exit code 2, or with what the verb's
`error_code(error)` says; `--debug` shows the traceback. Of several processes of a run, one shows
what went wrong.
"""

import os
import select
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TextIO

from controlllm.common.interrupts import INTERRUPTED, raise_once, was_interrupted

__all__ = ["VERBS", "main"]

VERBS = {
    "train": "train by a run file (YAML), and go on where an interrupted run stopped",
    "plan": "what a run will take: parameters, memory, FLOPs, checkpoints; nothing is loaded",
    "eval": "loss and lm-eval tasks, base and trained side by side",
    "suites": "suites of benchmarks, and what this machine lacks for them",
    "calibrate": "sweep alpha, and keep the one that learns most within a budget of forgetting",
    "compare": "what several runs learned, forgot and took, in one table, benchmarks in another",
    "sequence": "what became of each task in runs that went on from one another",
    "report": "what several runs gained and lost on benchmarks, as one page to send to people",
    "probe": "look inside: what each copy does to each token, and which blocks carry the learning",
    "ship": "PASS, FAIL or INCONCLUSIVE by the rules of a gate, from stored items",
    "chat": "talk with a model; alpha can change in the middle",
    "serve": "an OpenAI-compatible server, the dial in every request",
    "export": "write a model as a sidecar or adapter, in full, or collapsed into the base's form",
    "combine": "join two models expanded from the same base",
    "data": "look at the data of a run (data inspect), or tokenize it ahead (data prepare)",
    "inspect": "show a model's expansion: blocks, parameters, alphas, bytes",
    "demo": "the story in four minutes, on a small model that ships with the package",
    "env": "versions and devices, for bug reports",
}
_MODULES = {verb: f"controlllm.cli.{verb}" for verb in VERBS} | {"eval": "controlllm.cli.evaluate"}
_OURS = 2
_NOBODY_READS = 141
"""As shells tell of a process that SIGPIPE has ended."""
_GOES_ON = {
    "train": " Run the same command again: it goes on from the newest checkpoint, if any.",
    "eval": " Run the same command again: it goes on with the answers that are kept, if any.",
}
"""After Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `controlllm`; None takes them from the command line.

    Returns:
        The exit code: 0; 1 if another process of the run was lost; 2 for a wrong input or what
        else this library refuses; 75 for a run that was asked to stop, and saved; 130 after Ctrl-C;
        141 where nobody reads what is printed any more. `ship` has its own (`controlllm.cli.ship`).
    """
    from controlllm.common.text.readable import guarded_output

    if argv is None:
        sys.excepthook = _show_traceback
    try:
        with guarded_output():
            return _main(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        if not _is_closed(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # For the last flush.
        return _NOBODY_READS


def _is_closed(stream: TextIO) -> bool:
    """Whether who read it has gone, as `head` does."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _main(words: list[str]) -> int:
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(_version())
        return 0
    return _run(words[0], words[1:], debug)


def _run(verb: str, argv: list[str], debug: bool) -> int:
    from controlllm.cli.kit.terminal import plain_warnings
    from controlllm.common.errors import ControlLLMError, noted_outcome
    from controlllm.common.registry import check_choice
    from controlllm.common.text.progress import show_progress

    module: Any = None
    try:
        check_choice("command", verb, VERBS)
        with plain_warnings():
            module = import_module(_MODULES[verb])
            raise_once()
            show_progress(True)
            code = module.run([*argv, "--debug"] if debug and verb == "train" else argv)
    except ControlLLMError as error:
        return _tell(error, debug, getattr(module, "error_code", lambda error: _OURS))
    except KeyboardInterrupt:
        return _tell_interrupted(verb)
    except SystemExit as end:  # --help and --print_config of the parser
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        if was_interrupted():  # A library has turned it into an error of its own.
            return _tell_interrupted(verb)
        outcome = noted_outcome(error)
        if outcome is None or outcome.shown:
            raise
        return outcome.code
    finally:
        show_progress(False)
    return int(code or 0)


def _tell_interrupted(verb: str) -> int:
    from controlllm.cli.kit.terminal import speaks

    if speaks():
        print(f"\nInterrupted.{_GOES_ON.get(verb, '')}", file=sys.stderr)
    return INTERRUPTED


def _tell(error: Exception, debug: bool, code_of: Callable[[Exception], int]) -> int:
    """Show an error, unless another process of the run does; the exit code."""
    from controlllm.cli.kit.terminal import record, speaks
    from controlllm.common.errors import Outcome, noted_outcome
    from controlllm.common.text.readable import readable

    outcome = noted_outcome(error) or Outcome(speaks(), code_of(error))
    if outcome.shown:
        record(error)
        if debug:
            raise error
        print(f"controlllm: {readable(str(error))}", file=sys.stderr)
    return outcome.code


def _show_traceback(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """As the interpreter does; but a stranger's words in it steer no terminal."""
    from traceback import format_exception

    from controlllm.common.text.readable import readable

    print(readable("".join(format_exception(kind, error, trace))), end="", file=sys.stderr)


def _help() -> str:
    verbs = "\n".join(f"  {verb:<10} {text}" for verb, text in VERBS.items())
    return (
        "usage: controlllm <command> [options]\n\n"
        "Teach a language model something new without forgetting.\n\n"
        f"commands:\n{verbs}\n\n"
        "`controlllm <command> --help` shows all options of a command; --debug shows tracebacks.\n"
        "Every command takes --config FILE.yaml; options count more than the file. Lists replace\n"
        "the list below them, --name+ appends."
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("controlllm")
    except PackageNotFoundError:
        return "controlllm runs from its source folder and is not installed"
