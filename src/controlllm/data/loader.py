"""Step 8: the endless training loader, and the fixed batches of an evaluation."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError, DataError
from controlllm.data.batches import TRAIN, Batch, Member, packed_batch, padded_batch
from controlllm.data.config import DataConfig, SourceConfig
from controlllm.data.mixing import Draw, Mixer, share_out
from controlllm.data.packing import choose_for_slot, fill_slots
from controlllm.data.tokenized import TokenizedSource, tokenize_source

__all__ = ["TrainLoader", "eval_batches"]


class TrainLoader:
    """Endless training batches: a weighted mix of all sources, shuffled anew each epoch.

    The same config, tokenizer, batch size and seed always give the same batches, and a loader that
    loads the state of another goes on with exactly the batches that were left to it.

    Args:
        config: the sources and how to treat them.
        tokenizer: a fast tokenizer.
        batch_size: rows (padded) or slots (packed) of a batch.
        seed: of the shuffling.
        rehearsal: (what the base wrote, its share of the mix), if any.

    Raises:
        ConfigError: no train source, or shares that leave it nothing.
        DataError: a source is missing, empty or unreadable.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        seed: int,
        rehearsal: tuple[TokenizedSource, float] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size!r} must be at least 1.")
        if rehearsal and rehearsal[0].lengths.max() > config.max_length:
            raise DataError(f"rehearsal rows are longer than max_length={config.max_length}.")
        self.config = config
        self.batch_size = batch_size
        self.batches = 0
        self._pad_id = _pad_id(tokenizer)
        train = [
            (tokenize_source(source, tokenizer, config), source.weight) for source in config.train
        ]
        replay = [
            (tokenize_source(source, tokenizer, config), source.weight) for source in config.replay
        ]
        self._mixer = Mixer(
            share_out(train, replay, config.replay_share, rehearsal), seed, config.mix_by
        )
        self._waiting: list[Draw] = []

    @property
    def sources(self) -> list[TokenizedSource]:
        """All sources of the mix: train, then replay, then rehearsal."""
        return [stream.source for stream in self._mixer.streams]

    def __iter__(self) -> Iterator[Batch]:
        """The loader itself."""
        return self

    def __next__(self) -> Batch:
        """The next batch."""
        self.batches += 1
        if self.config.packing:
            slots = [self._next_slot() for _ in range(self.batch_size)]
            return packed_batch(slots, self.config.max_length, self._pad_id)
        rows = [self._member(self._next_row()) for _ in range(self.batch_size)]
        return padded_batch(rows, self.config.max_length, self._pad_id)

    def progress(self) -> dict[str, dict[str, float]]:
        """For each source: rows and tokens (or rows) drawn so far, and how many epochs that is."""
        mixer = self._mixer
        return {
            f"{number}:{stream.source.name}": {
                "rows": mixer.drawn[number],
                mixer.by: mixer.given[number],
                "epochs": mixer.drawn[number] / len(stream.source),
            }
            for number, stream in enumerate(mixer.streams)
        }

    def state_dict(self) -> dict[str, Any]:
        """Counters and the numbers of the rows that wait for a slot: a few KB of JSON at most."""
        waiting = [list(draw) for draw in self._waiting]
        return {"batches": self.batches, "waiting": waiting, **self._mixer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the loader that gave this state stood.

        Raises:
            CheckpointError: the state was written with other sources, shares or seed.
        """
        self._mixer.load_state_dict(state)
        self._waiting = [(stream, number) for stream, number in state["waiting"]]
        self.batches = state["batches"]

    def _next_row(self) -> Draw:
        return self._waiting.pop(0) if self._waiting else self._mixer.draw()

    def _next_slot(self) -> list[Member]:
        while len(self._waiting) < self.config.packing_lookahead:
            self._waiting.append(self._mixer.draw())
        lengths = [self._mixer.length(draw) for draw in self._waiting]
        chosen = choose_for_slot(lengths, self.config.max_length)
        slot = [self._member(self._waiting[i]) for i in chosen]
        taken = set(chosen)
        self._waiting = [draw for i, draw in enumerate(self._waiting) if i not in taken]
        return slot

    def _member(self, draw: Draw) -> Member:
        stream = self._mixer.streams[draw[0]]
        return stream.source[self._mixer.index(draw)], stream.origin


def eval_batches(
    source: SourceConfig | TokenizedSource,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    batch_size: int,
    limit: int | None = None,
) -> list[Batch]:
    """All batches of a held-out source, in a fixed order; each target is in them exactly once.

    Args:
        source: a source, tokenized or not.
        tokenizer: a fast tokenizer.
        config: template, targets, `max_length`, packing.
        batch_size: rows or slots of a batch; the last batch may have fewer.
        limit: use only the first so many examples.

    Raises:
        DataError: the source is missing, empty or unreadable.
    """
    if isinstance(source, SourceConfig):
        source = tokenize_source(source, tokenizer, config)
    lengths = source.lengths[:limit].tolist()
    pad_id = _pad_id(tokenizer)
    if config.packing:
        slots = list(fill_slots(lengths, config.max_length, config.packing_lookahead))
        members = [[(source[i], TRAIN) for i in slot] for slot in slots]
        return [
            packed_batch(part, config.max_length, pad_id) for part in _parts(members, batch_size)
        ]
    # Rows of like length together: little padding.
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    parts = _parts([(source[i], TRAIN) for i in order], batch_size)
    return [padded_batch(part, config.max_length, pad_id) for part in parts]


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id serves where the mask hides it, and EOS is always there."""
    pad_id = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad_id is None else pad_id)
