"""What a user says about the data of a run: its sources, how they become tokens and are mixed."""

import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.settings import LARGEST, RUNS_CODE, TINY, Rule, check_said
from controlllm.data.config.source_config import SourceConfig

__all__ = ["DataConfig", "StageConfig"]


def _shares(data: Any) -> bool:
    """Whether several sources share the mix; a section without train sources is not judged."""
    return not data.train or max(len(data.train), len(data.replay)) > 1


_OF_PACKING = "it says how packed slots are filled; set packing=true, or leave it out"
_OF_PADDING = "it shapes padded batches; set packing=false, or leave it out"
_OF_BUDGETS = "batches of max_tokens_per_batch are of like length already; leave it out"
_OF_WORKERS = "only worker processes read it; set num_workers, or leave it out"
_OF_SHUFFLING = "rows come as they lie with shuffle=false; leave it out"
_OF_SHARES = "there is one source, which has the whole share; leave it out"

_DATA_RULES = (
    Rule("packing_strategy", lambda data: data.packing, _OF_PACKING),
    Rule("packing_lookahead", lambda data: data.packing, _OF_PACKING),
    Rule("group_by_length", lambda data: not data.packing, _OF_PADDING),
    Rule("max_tokens_per_batch", lambda data: not data.packing, _OF_PADDING),
    Rule("group_by_length", lambda data: data.max_tokens_per_batch is None, _OF_BUDGETS),
    Rule("prefetch_factor", lambda data: data.num_workers > 0, _OF_WORKERS),
    Rule("shuffle_buffer", lambda data: data.shuffle, _OF_SHUFFLING),
    Rule("temperature", _shares, _OF_SHARES),
    Rule("stages", _shares, _OF_SHARES),
)
"""Of the data section as a whole."""

_ONCE = "each row of a held-out set is measured once, in order; leave it out"

_HELD_OUT_RULES = (
    Rule("weight", lambda source: False, _ONCE),
    Rule("epochs", lambda source: False, _ONCE),
    Rule("sample", lambda source: source.sample <= 1, _ONCE + ", or keep it below 1"),
    Rule("difficulty", lambda source: False, _ONCE),
    Rule("phases", lambda source: False, _ONCE),
)
"""Of sources of `learn` and `retain`."""


def _place(source: SourceConfig) -> tuple[str | None, ...]:
    """Where the rows of a source are, apart from its choices among them."""
    return source.path, source.subset, source.split, source.revision


@dataclass
class StageConfig:
    """Weights that hold until a number of tokens was given out (a curriculum over sources)."""

    tokens: float = setting(at_least=TINY)
    """Length of this stage in tokens, all ranks together (in rows where `mix_by: rows`)."""
    weights: dict[str, float] = setting()
    """Source -> weight in this stage; a source that is not named has weight 0."""

    def __post_init__(self) -> None:
        """Check every field; a `ConfigError` names it and its value."""
        check_values(self, "")
        in_range = all(0 <= weight <= LARGEST for weight in self.weights.values())
        if not in_range or not sum(self.weights.values()):
            raise ConfigError(f"weights={self.weights!r} must not be negative, nor all 0.")


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
    mix_by: str = setting("tokens", choices=("tokens", "rows"))
    """What weights and shares count: `tokens` or `rows` (each piece of a long text is a row)."""
    # BOS, a token to go on from, and one to predict.
    max_length: int = setting(1024, at_least=3)
    """Longest row in tokens; also the length of a packed slot."""
    packing: bool = True
    """Fill slots of `max_length` with documents (no attention across them) instead of padding."""
    packing_strategy: str = setting("best_fit", choices=("best_fit", "concat", "fixed"))
    """`best_fit` keeps documents whole; `concat` cuts them at the slots' ends, wasting nothing;
    `fixed` fills slots once, when a source is prepared, and shuffles slots: the quickest to read,
    but the same documents stay together in every epoch."""
    packing_lookahead: int = setting(64, at_least=1)
    """How many rows the packer chooses from; more fills slots better and keeps the order less."""
    group_by_length: bool = False
    """Without packing: batches of rows of like length, in an order that is shuffled."""
    max_tokens_per_batch: int | None = setting(None, at_least=1)
    """Without packing: as many rows as fit into so many tokens, padding included, instead of
    `per_device_train_batch_size` rows; never exceeded."""
    collator: str | None = None
    """Makes tensors of chosen rows; by default `packed` or `padded` (see `register_collator`)."""
    temperature: float | None = setting(None, at_least=TINY, at_most=math.inf)
    """Shares by size: weight * size ** (1 / temperature); by default by weight alone. 1 is in
    proportion to size, higher evens out."""
    stages: list[StageConfig] = field(default_factory=list)
    """Other weights at the beginning, stage by stage; the sources' own weights come last."""
    shuffle: bool = True
    """Draw rows in an order shuffled anew for each epoch, instead of as they lie."""
    shuffle_buffer: int = 1024
    """Rows of a large source that are mixed on top of the shuffled order of its chunks."""
    num_workers: int = setting(0, may_change=True)
    """Processes that read, tokenize and pack ahead; 0 does it between the steps."""
    prefetch_factor: int = setting(4, at_least=1, may_change=True)
    """Slots or batches that each worker process prepares ahead."""
    lanes: int | None = setting(None, at_least=1, may_change=True)
    """Independent streams the data is dealt into; by default ranks * workers. Set it to keep the
    batches the same for any number of ranks and workers that divides it."""
    cache_dir: str | None = setting(None, may_change=True)
    """Where prepared tokens and whole-source passes are kept; by default
    `~/.cache/controlllm/data`. What `controlllm data prepare` put there is used by itself."""
    timeout: float = setting(60.0, at_least=TINY, may_change=True)
    """Seconds to wait for one answer of a remote file system before it counts as failed."""
    cache_timeout: float = setting(3600.0, at_least=TINY, may_change=True)
    """Seconds to wait for another process that prepares the same cache."""
    plugins: list[str] = field(default_factory=list, metadata=RUNS_CODE)
    """Python files that register formats, sources, filters, hooks, collators or metrics."""
    chat_template: str | None = None
    """`plain`, `chatml`, `llama2`, `llama3`, `mistral`, `alpaca`, a Jinja file or text; by default
    the tokenizer's own, or else `plain`."""
    max_eval_samples: int | None = setting(None, at_least=1)
    """Measure only the first so many examples of each held-out set; null = all."""
    max_eval_tokens: int | None = setting(65_536, at_least=1)
    """Measure only the first examples of a held-out set, of so many tokens in all; null = all. It
    does not bound a set that `max_eval_samples` or the source's `max_rows` does."""
    train_on: list[str] = field(default_factory=lambda: ["assistant"])
    """Roles whose turns are targets; plain text is always a target as a whole."""
    mixed_training: bool = False
    """Train on every token of a conversation; evaluation still counts `train_on` alone."""
    long_text: str = setting("split", choices=("split", "truncate", "drop"))
    """Plain text longer than `max_length`: `split` into pieces, `truncate` or `drop`."""
    long_chat: str = setting("truncate", choices=("truncate", "split", "drop"))
    """Conversations longer than `max_length`: `truncate` at the end, `split` or `drop`."""
    special_tokens_in_text: bool = False
    """Let `</s>`, `<|im_start|>` and the like inside rows become the tokens of that name, as rows
    that were rendered by a chat template beforehand need it; by default they are text."""
    piece_bos: bool = True
    """Begin every piece of a document that begins with BOS with BOS, too: the further pieces of a
    split one, and what `packing_strategy: concat` goes on with in the next slot. Most models
    that were pretrained with BOS predict badly without it. It costs one token of such a piece."""

    def __post_init__(self) -> None:
        """Check every field; a `ConfigError` names it and its value."""
        check_values(self, "")
        budget = self.max_tokens_per_batch
        if budget is not None and budget < self.max_length:
            raise ConfigError(
                f"max_tokens_per_batch={budget!r} cannot hold a row of "
                f"max_length={self.max_length}; raise the first, or lower the second."
            )
        if not self.train_on:
            raise ConfigError(f"train_on={self.train_on!r} names no role; ['assistant'] is usual.")
        if not 0 <= self.replay_share < 1:
            raise ConfigError(f"replay_share={self.replay_share!r} must be at least 0 and below 1.")
        if bool(self.replay) != (self.replay_share > 0):
            raise ConfigError(
                f"replay_share={self.replay_share!r} with {len(self.replay)} replay sources: "
                "give both a share above 0 and at least one source, or neither."
            )
        for groups in (("train", "replay"), ("learn",), ("retain",)):
            _check_names({group: getattr(self, group) for group in groups})
        known = {str(source.name) for source in [*self.train, *self.replay]}
        for number, stage in enumerate(self.stages):
            if unknown := sorted(stage.weights.keys() - known):
                raise ConfigError(
                    f"stages[{number}].weights names {unknown}; the sources are {sorted(known)}."
                )
        self._check_splits()
        check_said(self, _DATA_RULES, where="data")
        for group in ("learn", "retain"):
            for number, source in enumerate(getattr(self, group)):
                check_said(source, _HELD_OUT_RULES, where=f"data.{group}[{number}]")

    @property
    def has_fixed_slots(self) -> bool:
        """Whether training reads slots that were filled beforehand."""
        return self.packing and self.packing_strategy == "fixed"

    def _check_splits(self) -> None:
        """Both sides of a split must be cut in the same way, or rows would be on both."""
        trained = [*self.train, *self.replay]
        sources = [*trained, *self.learn, *self.retain]
        # The first of those that split a place.
        cuts = {_place(source): source for source in reversed(sources) if source.part is not None}
        for source in sources:
            place = _place(source)
            if source.part is None:
                if place in cuts and any(source is other for other in trained):
                    raise ConfigError(
                        f"{source.path!r} is trained on as a whole by {source.name!r}, but split "
                        f"for {cuts[place].name!r}; set `part: train` in the first, too."
                    )
                continue
            other = cuts[place]
            if (source.held_out, source.group_by) != (other.held_out, other.group_by):
                raise ConfigError(
                    f"{source.path!r} is split in two ways: held_out={other.held_out!r}, "
                    f"group_by={other.group_by!r} in {other.name!r}, held_out={source.held_out!r}, "
                    f"group_by={source.group_by!r} in {source.name!r}; rows would be on both sides."
                )


def _check_names(groups: Mapping[str, Sequence[SourceConfig]]) -> None:
    """Refuse two sources of one name: stages, metrics and tables go by names."""
    known: dict[str, str] = {}
    for group, sources in groups.items():
        for source in sources:
            name = str(source.name)
            if name in known:
                raise ConfigError(
                    f"{name!r} is the name of two sources: {known[name]}, and "
                    f"{_described(group, source)}. Stages and metrics go by names: set `name` of "
                    f"one of them, e.g. `name: {_another(source, known)}`."
                )
            known[name] = _described(group, source)


def _described(group: str, source: SourceConfig) -> str:
    """A source in the words of its config, without its name."""
    more = {key: getattr(source, key) for key in ("subset", "part") if getattr(source, key)}
    if source.split != "train":
        more["split"] = source.split
    return f"data.{group} {source.path!r}" + "".join(f" {key}={v!r}" for key, v in more.items())


def _another(source: SourceConfig, taken: Container[str]) -> str:
    """A name that tells the source from one that is called as it is."""
    folder = source.path.rstrip("/").rpartition("/")[0].rpartition("/")[2]
    split = source.split if source.split != "train" else None
    for more in (source.subset, split, re.sub(r"[^\w-]+", "", folder)):
        if more and (name := f"{source.name}-{more}") not in taken:
            return name
    return next(name for i in count(2) if (name := f"{source.name}-{i}") not in taken)
