"""Fields of a source that its opener does not read are refused by name."""

from collections.abc import Collection

from controlllm.common.errors import ConfigError
from controlllm.common.settings.said import Rule, check_said
from controlllm.common.storage.remote import shown
from controlllm.data.config.source_config import SourceConfig

__all__ = ["require_read"]

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


def require_read(source: SourceConfig, reads: Collection[str]) -> None:
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
