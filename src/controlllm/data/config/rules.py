"""Fields of the data section that another one switches off: said, so used (`common/said`)."""

from typing import TYPE_CHECKING, Any

from controlllm.common.errors import ConfigError
from controlllm.common.settings.said import Rule, check_said
from controlllm.common.storage.remote import shown

if TYPE_CHECKING:
    from collections.abc import Collection

    from controlllm.data.config.data_config import SourceConfig

__all__ = ["DATA_RULES", "HELD_OUT_RULES", "SOURCE_RULES", "require_read"]


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

_READ_BY_SOME = {
    "file_type": "it is of files",
    "text_unit": "it is of plain text and Markdown; leave it out",
    "subset": "it is of data sets of the Hub (and of folders laid out like one, with "
    "`source_type: hub`); give the path of the wanted files instead",
    "split": "it is of folders and of data sets of the Hub; give the path of the wanted files "
    "instead, or `max_rows`",
    "revision": "it is of data sets of the Hub; leave it out",
    "streaming": "it is of data sets of the Hub: files are never downloaded as a whole; leave it "
    "out",
    "storage_options": "it is of addresses (`s3://...`) and of data sets of the Hub; leave it out",
}
"""Fields that only some openers read, and when."""


def require_read(source: "SourceConfig", reads: "Collection[str]") -> None:
    """Check that an opener reads every field that a source gives.

    Args:
        source: what the opener was given.
        reads: which of the fields that only some openers read it does.

    Raises:
        ConfigError: with the field, its value, and what to do.
    """
    rules = [
        Rule(name, lambda _: False, remedy)
        for name, remedy in _READ_BY_SOME.items()
        if name not in reads
    ]
    try:
        check_said(source, rules)
    except ConfigError as error:
        raise ConfigError(f"source {source.name!r} ({shown(source.path)}): {error}") from None
