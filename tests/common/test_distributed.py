"""Ranks agree on errors and values: real gloo processes."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tests.processes import run_ranks, values

from controlllm.common.distributed import Ranks
from controlllm.common.errors import ConfigError, ControlLLMError, DataError

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or not dist.is_available(), reason="needs fork and torch.distributed"
)


def words(call: Callable[[], Any]) -> str:
    """`Kind: words` of the error that a call raises, or what it returns."""
    try:
        return str(call())
    except ControlLLMError as error:
        return f"{type(error).__name__}: {error}"


def test_a_process_alone() -> None:
    ranks = Ranks.current()
    assert (ranks.rank, ranks.world_size, ranks.gather(3)) == (0, 1, [3])
    assert ranks.agree(None) is False and ranks.agree(None, ended=True) is True
    error = DataError("x")
    with pytest.raises(DataError) as caught:
        ranks.agree(error)
    assert caught.value is error


def test_ranks_agree(tmp_path: Path) -> None:
    class Own(DataError):
        """Cannot be pickled: other processes do not know it."""

    def talk(rank: int) -> dict[str, Any]:
        ranks = Ranks.current(timeout=20)

        def nested() -> None:
            error: Exception | None = None
            try:
                ranks.agree(DataError("deep") if rank == 2 else None)
            except ControlLLMError as failure:
                error = failure
            ranks.agree(error)

        return {
            "gather": ranks.gather({"rank": ranks.rank}),
            "none": ranks.agree(None),
            "ended": ranks.agree(None, ended=rank == 1),
            "one": words(lambda: ranks.agree(DataError("file a is gone") if rank == 1 else None)),
            "two": words(lambda: ranks.agree(ConfigError(f"no {rank}") if rank else None)),
            "foreign": words(lambda: ranks.agree(KeyError("k") if rank == 0 else None)),
            "own": words(lambda: ranks.agree(Own("strange") if rank == 2 else None)),
            "nested": words(nested),
            "after": ranks.gather(rank),  # nobody is a step ahead of the others
        }

    told = values(run_ranks(talk, 3, tmp_path))
    assert told[0] == told[1] == told[2]
    assert told[0] == {
        "gather": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
        "none": False,
        "ended": True,
        "one": "DataError: rank 1: file a is gone",
        "two": "ConfigError: rank 1: no 1; rank 2: no 2",
        "foreign": "ControlLLMError: rank 0: KeyError('k')",
        "own": "DataError: rank 2: strange",
        "nested": "DataError: rank 2: deep",
        "after": [0, 1, 2],
    }


def test_a_rank_that_dies_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    def talk(rank: int) -> str:
        ranks = Ranks.current(timeout=300)
        ranks.gather(None)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        began = time.monotonic()
        found = words(lambda: ranks.agree(None))
        assert time.monotonic() - began < 30
        return found

    outcomes = run_ranks(talk, 2, tmp_path, timeout=60)
    assert "LostRankError: rank 0 of 2 lost another rank" in str(outcomes[0])
    assert outcomes[1].value is None
