"""Fields of the data section that another one switches off: said, so used (`common/said`)."""

from typing import TYPE_CHECKING, Any

from controlllm.common.settings.said import Rule

if TYPE_CHECKING:
    pass

__all__ = ["DATA_RULES", "HELD_OUT_RULES", "SOURCE_RULES"]


def _shares(data: Any) -> bool:
    """Whether there are shares to be had; a section without train sources is not judged."""
    return not data.train or max(len(data.train), len(data.replay)) > 1


DATA_RULES = (
    Rule(
        "packing_strategy",
        lambda data: data.packing,
        "it says how packed slots are filled; set packing=true, or leave it out",
    ),
    Rule(
        "packing_lookahead",
        lambda data: data.packing,
        "it says how packed slots are filled; set packing=true, or leave it out",
    ),
    Rule(
        "group_by_length",
        lambda data: not data.packing,
        "it shapes padded batches; set packing=false, or leave it out",
    ),
    Rule(
        "max_tokens_per_batch",
        lambda data: not data.packing,
        "it shapes padded batches; set packing=false, or leave it out",
    ),
    Rule(
        "group_by_length",
        lambda data: data.max_tokens_per_batch is None,
        "batches of max_tokens_per_batch are of like length already; leave it out",
    ),
    Rule(
        "prefetch_factor",
        lambda data: data.num_workers > 0,
        "it is of worker processes; set num_workers, or leave it out",
    ),
    Rule(
        "shuffle_buffer",
        lambda data: data.shuffle,
        "rows come as they lie with shuffle=false; leave it out",
    ),
    Rule("temperature", _shares, "there is one source, which has the whole share; leave it out"),
    Rule("stages", _shares, "there is one source, which has the whole share; leave them out"),
)
"""Of the data section as a whole."""

SOURCE_RULES = (
    Rule("held_out", lambda source: source.part is not None, "it does nothing without `part`"),
    Rule("group_by", lambda source: source.part is not None, "it does nothing without `part`"),
    Rule(
        "phases",
        lambda source: source.difficulty is not None,
        "it does nothing without `difficulty`",
    ),
)
"""Of every source."""

_ONCE = "each row of a held-out set is measured once, in order; leave it out"

HELD_OUT_RULES = (
    Rule("weight", lambda source: False, _ONCE),
    Rule("epochs", lambda source: False, _ONCE),
    Rule("sample", lambda source: source.sample <= 1, _ONCE + ", or keep it below 1"),
    Rule("difficulty", lambda source: False, _ONCE),
    Rule("phases", lambda source: False, _ONCE),
)
"""Of sources of `learn` and `retain`."""
