"""Several processes fail as one: the first to fail shows its error, the others show nothing.

A process that meets an error of its own writes its exit code on the store by which the processes
found each other, before it lets go of them. Those whose collectives break off after that look there
first, so that one message is shown, and not one for each process.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from controlllm.common.distributed import Ranks
from controlllm.common.errors import ControlLLMError, Outcome, note_outcome, noted_outcome

__all__ = ["FAILED", "INTERRUPTED", "REFUSED", "failing_together", "let_others_hear"]

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit codes: after a fault that may not come again; after an error of ours; after Ctrl-C."""
_CODE, _CLAIMS, _HEARD = "controlllm/exit_code", "controlllm/claims", "controlllm/heard"
_SECONDS_TO_HEAR = 1.0


@contextmanager
def failing_together(store: Any, ranks: Ranks) -> Iterator[None]:
    """Give each error that leaves the block its exit code, and let one process show it.

    The store is one that all processes reach.

    Raises:
        LostRankError: instead of torch's own, where a collective broke off.
    """
    try:
        yield
    except BaseException as error:
        if noted_outcome(error) is None:
            if ranks.is_broken(error):
                _follow(error, store, ranks)
            note_outcome(error, _lead(error, store, ranks))
        raise


def let_others_hear(store: Any, ranks: Ranks) -> None:
    """Keep this process's store open for a moment, so that others can read the error on it.

    It is for others that fail at the same time by themselves. Those that wait in a collective are
    let go only by the end of this process; they find no store then, and end without a word.
    """
    if ranks.rank or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    end = time.monotonic() + _SECONDS_TO_HEAR
    while store.check([_CODE]) and store.add(_HEARD, 0) < ranks.world_size:
        if time.monotonic() > end:
            return
        time.sleep(0.02)


def _lead(error: BaseException, store: Any, ranks: Ranks) -> Outcome:
    """Tell the others of an error of this process."""
    code = REFUSED if isinstance(error, ControlLLMError) else FAILED
    if isinstance(error, KeyboardInterrupt):
        code = INTERRUPTED
    elif isinstance(error, SystemExit) and isinstance(error.code, int):
        code = error.code
    if vars(error).get("known_to_all_ranks"):
        return Outcome(ranks.rank == 0, code)
    shown = not isinstance(error, SystemExit)
    try:
        store.set(_CODE, str(code))
        shown = shown and store.add(_CLAIMS, 1) == 1
        store.add(_HEARD, 1)
    except RuntimeError:
        pass  # The store is gone with rank 0; nobody else will show this.
    return Outcome(shown, code)


def _follow(error: BaseException, store: Any, ranks: Ranks) -> None:
    """End as the process that failed first; if none said that it failed, one must show this."""
    assert isinstance(error, Exception)
    lost = ranks.lost(error) if not isinstance(error, ControlLLMError) else error
    try:
        if store.check([_CODE]):
            outcome = Outcome(False, int(store.get(_CODE)))
            store.add(_HEARD, 1)
        else:
            outcome = Outcome(store.add(_CLAIMS, 1) == 1, FAILED)
    except RuntimeError:
        # It went with rank 0, which showed its error, or was killed, which its launcher shows.
        outcome = Outcome(False, FAILED)
    note_outcome(lost, outcome)
    raise lost from error
