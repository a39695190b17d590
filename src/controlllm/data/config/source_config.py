"""What a user says about one source: where its rows lie, and which of them are taken."""

import re
from dataclasses import dataclass, field
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.settings import TINY, Rule, check_said
from controlllm.data.config.columns import template_parts

__all__ = ["SourceConfig", "name_from_path"]

_OF_PART = "it does nothing without `part`; set that as well, or leave it out"
_OF_DIFFICULTY = "it does nothing without `difficulty`; set that as well, or leave it out"

_RULES = (
    Rule("held_out", lambda source: source.part is not None, _OF_PART),
    Rule("group_by", lambda source: source.part is not None, _OF_PART),
    Rule("phases", lambda source: source.difficulty, _OF_DIFFICULTY),
)


@dataclass
class SourceConfig:
    """One source of rows: files at any address, a `save_to_disk` folder or a Hub data set."""

    path: str
    """File, folder or glob (`data/**/*.jsonl.gz`), here or at any fsspec address (`hdfs://`,
    `webhdfs://`, `s3://`, `gs://`, `https://`), a `save_to_disk` folder, or a Hub name."""
    name: str | None = None
    """How metrics and stages call this source, and no other one; by default the last part of the
    path without its endings."""
    weight: float = setting(1.0, at_least=TINY)
    """Share of this source among its siblings: its weight over the sum of their weights."""
    format: str | None = None
    """How a row becomes a text or a conversation; by default recognised from its columns."""
    columns: dict[str, str] = field(default_factory=dict)
    """The format's column -> the row's column, e.g. `{prompt: question, completion: answer}`, or
    several columns in one text: `{prompt: "{Body} {Question}"}`."""
    numbers_as_text: bool = False
    """Read numbers in the format's columns as the text that they are written as (`51.0`)."""
    source_type: str | None = None
    """What opens the path: `files`, `saved` (a `save_to_disk` folder), `hub`, or the name of a
    plugin (see `register_source`); by default told from the path."""
    file_type: str | None = None
    """`jsonl | json | parquet | csv | text | arrow | avro`, or the name of a plugin (see
    `register_reader`); by default told from each ending."""
    text_unit: str = setting("file", choices=("file", "paragraph", "line"))
    """One document of a text file: the `file`, a `paragraph` (between blank lines) or a `line`."""
    subset: str | None = None
    """Configuration of a Hub data set (`main` for `openai/gsm8k`)."""
    split: str = "train"
    """Split of a Hub data set or of a folder, whose files are told apart by their names
    (`train.jsonl`, `data/train-00000-of-00002.parquet`, `test/...`); slices as `train[:10%]` are
    known."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    streaming: bool = False
    """Read a Hub data set over the network while training, instead of downloading it first."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    """What the file system of the address is given (`user`, `token`, `endpoint_url`, ...)."""
    max_rows: int | None = setting(None, at_least=1)
    """Read only this many rows from the start; by default all."""
    max_row_bytes: int = setting(8 * 2**20, at_least=1)
    """A row with more bytes than this is a bad row (it guards memory, also from gzip bombs)."""
    part: str | None = setting(None, choices=("train", "held_out"))
    """Which side of a split by hash to take: `train` or `held_out`; by default every row."""
    held_out: float = 0.05
    """Share of rows (or groups) that is held out where `part` is set."""
    group_by: str | None = None
    """Column whose equal values stay on one side of the split; by default the whole row."""
    where: dict[str, Any] = field(default_factory=dict)
    """Keep only rows whose column has this value, or one of these, e.g. `{lang: [en, de]}`."""
    filter: str | None = None
    """Keep only rows for which the filter of this name (see `register_filter`) says so."""
    deduplicate: bool = False
    """Keep only the first of rows with the same content; reads the whole source once (cached)."""
    sample: float = setting(1.0, at_least=TINY)
    """Below 1: the share of rows to keep, chosen by hash. Above 1: up-sampling, the source counts
    as so many times larger."""
    sample_rows: int | None = setting(None, at_least=1)
    """Keep so many rows of the source, chosen by hash; reads the whole source once (cached)."""
    epochs: float | None = setting(None, at_least=TINY)
    """Leave the mix after so many passes, to the next whole chunk (a row of small sources, a file
    of packed ones); by default the source goes round for ever."""
    difficulty: str | None = None
    """Draw easy rows first: by `length`, or by a column of numbers; reads the whole source once."""
    phases: int = setting(4, at_least=1)
    """Where `difficulty` is set: how many phases of equal token mass, each shuffled in itself."""
    postprocess: str | None = None
    """Hook of this name (see `register_postprocess`) that rewrites the whole source, cached."""
    on_bad_row: str = setting("error", choices=("error", "skip"))
    """`error` stops at the first row that cannot be used; `skip` leaves such rows out, counted."""

    def __post_init__(self) -> None:
        """Check every field; a `ConfigError` names it and its value."""
        if not self.path.strip():
            raise ConfigError(f"path={self.path!r} is empty; give a file, folder, glob or name.")
        check_values(self, "")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out={self.held_out!r} must be above 0 and below 1.")
        self.where = {key: v if isinstance(v, list) else [v] for key, v in self.where.items()}
        check_said(self, _RULES)
        for template in self.columns.values():
            template_parts(template)
        if self.name is None:
            self.name = name_from_path(self.path)


def name_from_path(path: str) -> str:
    """`data/gsm8k/train.jsonl.gz` -> `train`, `data/poems/**/*.json` -> `poems`.

    A name is shown and stored, so it holds no query and no `user:password@` of an address.
    """
    scheme, is_address, rest = path.rpartition("://")
    if is_address:
        host, slash, below = rest.partition("/")
        path = host.rpartition("@")[2] + slash + below
        path = path.partition("?")[0] if scheme.startswith("http") else path
    plain = [part for part in path.split("/") if part and not re.search(r"[*?\[]", part)]
    last = plain[-1] if plain else "source"
    return last.split(".", 1)[0] or last
