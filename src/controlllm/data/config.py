"""What a user says about data: where rows lie, how they become tokens, how sources are mixed."""

import re
from dataclasses import dataclass, field

from controlllm.common.errors import ConfigError
from controlllm.common.registry import check_choice

__all__ = ["DataConfig", "SourceConfig"]


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ConfigError(f"{name}={value!r} must be above 0.")


@dataclass
class SourceConfig:
    """One source of rows: a file, a folder, a glob, a `save_to_disk` folder or a Hub name."""

    path: str
    """File, folder, glob (`data/**/*.jsonl.gz`), `save_to_disk` folder or Hub name."""

    name: str | None = None
    """How metrics call this source; by default the last part of the path without its endings."""

    weight: float = 1.0
    """Share of this source among its siblings: its weight over the sum of their weights."""

    format: str | None = None
    """How a row becomes a text or a conversation; by default recognised from its columns."""

    columns: dict[str, str] = field(default_factory=dict)
    """The format's column -> the row's column, e.g. `{prompt: question, completion: answer}`."""

    file_type: str | None = None
    """`jsonl | json | parquet | csv | text`; by default told from the ending of each file."""

    text_unit: str = "file"
    """One document of a text file: the `file`, a `paragraph` (between blank lines) or a `line`."""

    subset: str | None = None
    """Configuration of a Hub data set (`main` for `openai/gsm8k`)."""

    split: str = "train"
    """Split of a Hub data set or of a `save_to_disk` folder with several."""

    max_rows: int | None = None
    """Read only this many rows from the start; by default all."""

    on_bad_row: str = "error"
    """`error` stops at the first row that cannot be used; `skip` leaves such rows out, counted."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: with the field and its value.
        """
        if not self.path.strip():
            raise ConfigError(
                f"path={self.path!r} is empty; give a file, folder, glob or Hub name."
            )
        _check_positive("weight", self.weight)
        check_choice("text_unit", self.text_unit, ("file", "paragraph", "line"))
        check_choice("on_bad_row", self.on_bad_row, ("error", "skip"))
        if self.file_type is not None:
            check_choice("file_type", self.file_type, ("jsonl", "json", "parquet", "csv", "text"))
        if self.max_rows is not None:
            _check_positive("max_rows", self.max_rows)
        if self.name is None:
            self.name = _name_from_path(self.path)


def _name_from_path(path: str) -> str:
    """`data/gsm8k/train.jsonl.gz` -> `train`, `data/poems/**/*.json` -> `poems`."""
    plain = [part for part in path.split("/") if part and not re.search(r"[*?\[]", part)]
    last = plain[-1] if plain else "source"
    return last.split(".", 1)[0] or last


@dataclass
class DataConfig:
    """Everything about data of one run: sources, rendering, packing, mixing."""

    train: list[SourceConfig] = field(default_factory=list)
    """Sources to learn from, mixed by their weights."""

    replay: list[SourceConfig] = field(default_factory=list)
    """Sources of the old domain, mixed in so that it is not forgotten."""

    replay_share: float = 0.0
    """Share of the training mix that comes from `replay` (0.05 to 0.125 is usual)."""

    learn: list[SourceConfig] = field(default_factory=list)
    """Held-out sets of the new domain: their loss says what was learned."""

    retain: list[SourceConfig] = field(default_factory=list)
    """Held-out sets of the old domain: their loss says what was forgotten."""

    mix_by: str = "tokens"
    """What weights and shares count: `tokens` or `rows` (each piece of a long text is a row)."""

    max_length: int = 1024
    """Longest row in tokens; also the length of a packed slot."""

    packing: bool = True
    """Fill slots of `max_length` with documents (no attention across them) instead of padding."""

    packing_lookahead: int = 128
    """How many rows the packer chooses from; more fills slots better and keeps the order less."""

    chat_template: str | None = None
    """`plain`, `chatml`, a Jinja file or text; by default the tokenizer's own, or else `plain`."""

    train_on: list[str] = field(default_factory=lambda: ["assistant"])
    """Roles whose turns are targets; plain text is always a target as a whole."""

    long_text: str = "split"
    """Plain text longer than `max_length`: `split` into pieces, `truncate` or `drop`."""

    long_chat: str = "truncate"
    """Conversations longer than `max_length`: `truncate` at the end or `drop`."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: with the field and its value.
        """
        check_choice("mix_by", self.mix_by, ("tokens", "rows"))
        check_choice("long_text", self.long_text, ("split", "truncate", "drop"))
        check_choice("long_chat", self.long_chat, ("truncate", "drop"))
        _check_positive("packing_lookahead", self.packing_lookahead)
        if self.max_length < 2:
            raise ConfigError(f"max_length={self.max_length!r} must be at least 2.")
        if not self.train_on:
            raise ConfigError(f"train_on={self.train_on!r} names no role; ['assistant'] is usual.")
        self._check_replay()
        for group in ("learn", "retain"):
            self._check_names(group)

    def _check_replay(self) -> None:
        if not 0 <= self.replay_share < 1:
            raise ConfigError(f"replay_share={self.replay_share!r} must be at least 0 and below 1.")
        if bool(self.replay) != (self.replay_share > 0):
            raise ConfigError(
                f"replay_share={self.replay_share!r} with {len(self.replay)} replay sources: "
                "give both a share above 0 and at least one source, or neither."
            )

    def _check_names(self, group: str) -> None:
        names = [source.name for source in getattr(self, group)]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"{group}: {twice} name several sources; metrics are kept by name: set `name`."
            )
