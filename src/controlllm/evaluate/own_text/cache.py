"""What a model wrote, from the cache if it is there: own text, and what is rehearsed.

    Writer --plan--> tokens, and which of them the model wrote
                           |
                     <folder>/<key>.json     the key is a hash of writer and plan

A file may be anybody's: it is held against the plan, and what does not fit is refused by its name.
"""

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict

import numpy as np

from controlllm.common.errors import CheckpointError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.common.storage.files import write_json
from controlllm.common.storage.schema import read_record
from controlllm.data import Example
from controlllm.evaluate.own_text.chat import write_chats
from controlllm.evaluate.own_text.plan import ChatPlan, SamplingPlan
from controlllm.evaluate.own_text.writing import Writer, sample_sequences

__all__ = ["Written", "read_or_write"]

log = logging.getLogger(__name__)

Spans = list[list[int]]
"""Where [start, end) a model wrote a sequence, the rest being prompt and template."""


@dataclass(frozen=True)
class Written:
    """Sequences of a plan.

    Attributes:
        sequences: token ids of each, its prompt included.
        spans: where the model wrote each.
        seconds: that writing took; 0 where they were there.
    """

    sequences: list[list[int]]
    spans: list[Spans]
    seconds: float

    def examples(self) -> list[Example]:
        """Of each sequence an example; targets are what the model wrote."""
        return [
            _example(tokens, spans)
            for tokens, spans in zip(self.sequences, self.spans, strict=True)
        ]


class _Record(TypedDict, total=False):
    """A file of the cache."""

    sequences: Required[list[list[int]]]
    written: list[Spans]  # of a `ChatPlan`; in sequences it is what follows the prompt


def read_or_write(
    writer: Writer,
    plan: SamplingPlan | ChatPlan,
    folder: Path,
    who: str,
    elsewhere: Sequence[Path] = (),
) -> Written:
    """What the writer writes by a plan; the same plan gives the same on the same machine.

    Args:
        writer: who writes, where it is not there yet.
        plan: what.
        folder: where it lies, or is kept.
        who: what for and by whom, as messages call it: "rehearsal: the base".
        elsewhere: folders that may have it, too.

    Raises:
        CheckpointError: a file holds something else.
    """
    name = hashlib.sha256(f"{writer.key}{plan.key}".encode()).hexdigest()[:24] + ".json"
    places = (place / name for place in (folder, *elsewhere))
    path = next((place for place in places if place.is_file()), None)
    if path is not None:
        log.info("%s: %d sequences from %s", who, plan.num_sequences, path)
        record = read_record(path, _Record)
        _check(record, plan, writer, path)
        return Written(record["sequences"], _spans(record, plan), 0.0)
    log.info("%s writes %d sequences", who, plan.num_sequences)
    started = time.monotonic()
    if isinstance(plan, ChatPlan):
        chats = write_chats(writer, plan, f"{who} writes, behind the chat template")
        record = {"sequences": [c[0] for c in chats], "written": [c[1] for c in chats]}
    else:
        record = {"sequences": sample_sequences(writer, plan, f"{who} writes")}
    write_json(folder / name, record, indent=None)
    return Written(record["sequences"], _spans(record, plan), time.monotonic() - started)


def _example(tokens: Sequence[int], spans: Spans) -> Example:
    ids = np.array(tokens, dtype=np.int32)
    labels = np.full_like(ids, IGNORE_INDEX)
    for start, end in spans:
        labels[start:end] = ids[start:end]
    return Example(ids, labels)


def _check(record: Any, plan: SamplingPlan | ChatPlan, writer: Writer, path: Path) -> None:
    """Check that a record can be what the writer wrote by a plan (CheckpointError)."""
    vocabulary = writer.model.config.get_text_config(decoder=True).vocab_size
    rows, number = record["sequences"], plan.num_sequences
    starts = (plan.before,) if isinstance(plan, ChatPlan) else plan.prompts
    holds = len(rows) == number and all(
        tuple(row[: len(start)]) == start
        and 0 < len(row) <= plan.length
        and 0 <= min(row) <= max(row) < vocabulary
        for row, start in zip(rows, (starts[i % len(starts)] for i in range(number)), strict=True)
    )
    if holds and isinstance(plan, ChatPlan):
        spans, begin = record.get("written", ()), len(plan.before)
        holds = len(spans) == number and all(
            len(turns) == 2
            and all(len(turn) == 2 for turn in turns)
            and begin == turns[0][0] < turns[0][1] <= turns[1][0] < turns[1][1] == len(row)
            for row, turns in zip(rows, spans, strict=True)
        )
    if not holds:
        raise CheckpointError(
            f"{path} does not hold {number} sequences of at most {plan.length} of this model's "
            "tokens, as they are written here; remove the file."
        )


def _spans(record: Any, plan: SamplingPlan | ChatPlan) -> list[Spans]:
    if isinstance(plan, ChatPlan):
        return list(record["written"])
    starts = [len(prompt) for prompt in plan.prompts]
    return [[[starts[i % len(starts)], len(row)]] for i, row in enumerate(record["sequences"])]
