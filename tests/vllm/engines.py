"""vLLM in processes of its own: it changes classes of transformers in the process that it runs in.

vLLM takes a minute to import, so it is imported once, here, and each engine gets a copy (a fork) of
this process.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["in_own_process", "make_engine"]

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def make_engine(folder: str, ranks: int = 1, compiled: bool = False, **more: Any) -> Any:
    """A small engine on a saved folder, without a tokenizer."""
    from vllm import LLM

    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "auto" if ranks == 1 else "|".join("01"[:ranks])
    settings = {
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "enforce_eager": not compiled,
        "tensor_parallel_size": ranks,
        "distributed_executor_backend": "uni" if ranks == 1 else "mp",
        "max_model_len": 128,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "enable_prefix_caching": True,
        "block_size": 32,
    }
    return LLM(folder, **settings | more)


def in_own_process(work: Callable[..., Any], *args: Any, seconds: float = 900) -> Any:
    """What `work(*args)` gives, or the text of the error that it raised (`RuntimeError`)."""
    os.environ.update(ENVIRONMENT)

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work, args))
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise TimeoutError(f"vLLM gave no answer in {seconds:g} s")
        good, value = ours.recv()
    except EOFError:
        good, value = False, "the process died"
    finally:
        process.join(20)
        process.kill()
    if not good:
        raise RuntimeError(value)
    return value


def _answer(pipe: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    from vllm.model_executor.models import registry

    # It looks at a class in a process of its own, which takes another minute to import all.
    registry._run_in_subprocess = lambda look: look()
    try:
        pipe.send((True, work(*args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    pipe.close()
    os._exit(0)  # engines leave threads behind
