"""Batches made by hand, and models small enough to work out on paper."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

IGNORE = -100


def padded(documents: Sequence[Sequence[int]]) -> dict[str, Any]:
    """One row per document; the first token of each is no target."""
    length = max(map(len, documents))
    rows = [list(document) for document in documents]
    return {
        "input_ids": torch.tensor([row + [0] * (length - len(row)) for row in rows]),
        "labels": torch.tensor(
            [[IGNORE, *row[1:]] + [IGNORE] * (length - len(row)) for row in rows]
        ),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows]),
        "origin": torch.zeros(len(rows), length, dtype=torch.int8),
    }


def packed(documents: Sequence[Sequence[int]]) -> dict[str, Any]:
    """All documents in one row, positions restarting, no attention across."""
    tokens = [token for document in documents for token in document]
    labels = [label for document in documents for label in [IGNORE, *document[1:]]]
    positions = [position for document in documents for position in range(len(document))]
    ends = torch.tensor([0, *(len(d) for d in documents)]).cumsum(0).to(torch.int32)
    longest = max(map(len, documents))
    return {
        "input_ids": torch.tensor([tokens]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
        "origin": torch.zeros(1, len(tokens), dtype=torch.int8),
    }


class Bigram(nn.Module):
    """p(next | token) from a table of probabilities (V, V): losses can be worked out by hand."""

    def __init__(self, table: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(table).log())

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[input_ids])


class DialledBigram(Bigram):
    """A bigram model with a base inside and a dial: probabilities (1 - alpha) base + alpha trained.

    The trained setting is alpha = 1.
    """

    def __init__(self, base: Sequence[Sequence[float]], trained: Sequence[Sequence[float]]) -> None:
        super().__init__(base)
        self.base, self.trained = torch.tensor(base), torch.tensor(trained)
        self.expansion = SimpleNamespace(dial=None)
        self.has_gates = False
        self.enabled = True
        self.forward_passes = {"base": 0, "trained": 0}

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        self.forward_passes["trained" if self.enabled else "base"] += 1
        dial = 1.0 if self.expansion.dial is None else self.expansion.dial
        is_base = dial == 0 or not self.enabled
        table = self.base if is_base else torch.lerp(self.base, self.trained, dial)
        return SimpleNamespace(logits=table.log()[input_ids])

    def set_alpha(self, alpha: float | None) -> None:
        self.expansion.dial = alpha

    @contextmanager
    def record_alpha(self, gather: Any = None) -> Iterator[None]:
        yield

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        yield

    @contextmanager
    def disable_expansion(self) -> Iterator[None]:
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = True


# Tokens 0 and 1. The base says "again the same" with 3/4, the trained model with 1/4.
SAME, OTHER = [[0.75, 0.25], [0.25, 0.75]], [[0.25, 0.75], [0.75, 0.25]]
LN = math.log

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
  cache_dir: {cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


def write_task(folder: Path, name: str, file: Path) -> None:
    text = TASK.format(name=name, file=file, cache=folder / "cache")
    (folder / f"{name}.yaml").write_text(text)


GENERATION = """
task: continue
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
  cache_dir: {cache}
test_split: test
output_type: generate_until
doc_to_text: query
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 3, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


def write_generation_task(folder: Path) -> None:
    """The task `continue`: the rows of `repeat`, answered by greedy generation."""
    text = GENERATION.format(file=folder / "rows.jsonl", cache=folder / "cache")
    (folder / "continue.yaml").write_text(text)


def write_repetition_task(folder: Path) -> None:
    """The task `repeat`: four questions whose answer is to go on repeating."""
    rows = [{"query": w * 3, "choices": [w, "#"], "gold": 0} for w in ("aa", "bb", "cc", "dd")]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_task(folder, "repeat", folder / "rows.jsonl")
