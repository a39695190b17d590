"""A mend of torch's compiler, which else runs parts of an expanded model in a wrong order on CPUs.

vLLM's matrix products on CPUs write into tensors that they are given. Where the compiler makes two
loops into one, it may look anew at what a loop reads, and then (torch 2.13) forgets that a tensor
has been written into since it was made: the loop can come before the product that it reads. Blocks
with dials per token have loops of both kinds, by number and by row, that meet so.
"""

from functools import wraps
from typing import Any

import torch

from controlllm.common.errors import ModelError

__all__ = ["mend_order"]


def mend_order() -> None:
    """Let the compiler of this process keep in mind what was written into; once is enough.

    Raises:
        ModelError: this version of torch has another compiler.
    """
    from torch._inductor.scheduler import SchedulerNode
    from torch.compiler import config

    plain = getattr(SchedulerNode, "recompute_size_and_body", None)
    if plain is None:
        raise ModelError(
            f"torch {torch.__version__} has another compiler than those that the plugin knows to "
            "mend: add --enforce-eager."
        )
    if hasattr(plain, "controlllm"):
        return

    @wraps(plain)
    def recompute(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        self.set_read_writes(self.read_writes.rename(self.mutation_renames))

    recompute.__dict__["controlllm"] = True
    setattr(SchedulerNode, "recompute_size_and_body", recompute)  # noqa: B010  # mypy: a method
    # What was compiled without the mend is not to be found in the cache on disk.
    config.cache_key_tag += "controlllm mends order"
