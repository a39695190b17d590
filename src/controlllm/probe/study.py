"""What is looked at: a model, texts as it reads them, and the dial put back afterwards.

Texts are computed one by one, so there is no padding whose numbers could be taken for a text's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from controlllm.common.adapters import switch_adapters
from controlllm.common.errors import ModelError
from controlllm.common.losses import IGNORE_INDEX, cross_entropy_sum
from controlllm.data import DataConfig, Example, SourceConfig, read_examples
from controlllm.evaluate import Reference, evaluating
from controlllm.evaluate.forgetting.expanded import is_expanded
from controlllm.expansion.method.plan import ENDS
from controlllm.inference.compare import text_pieces
from controlllm.probe.settings import StudySettings

__all__ = ["Study", "Text", "own_dial", "read_texts"]


@dataclass(frozen=True)
class Text:
    """One text as the model reads it.

    Attributes:
        ids: (1, T).
        labels: (1, T), the ids where they are targets, -100 elsewhere.
        tokenizer: what made them.
    """

    ids: Tensor
    labels: Tensor
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def pieces(self) -> list[str]:
        """What each token adds to the text."""
        return text_pieces(self.tokenizer, self.ids[0].tolist())

    @property
    def begins(self) -> int:
        """Where the first target is."""
        return int((self.labels[0] != IGNORE_INDEX).int().argmax())

    def window(self, most: int) -> range:
        """At most so many positions, from the one on that predicts the first target.

        Chats begin with a long prompt, and what is learned stands behind it; of a text that ends
        soon after, the last positions.
        """
        length = self.ids.shape[1]
        begin = max(0, min(self.begins - 1, length - most))
        return range(begin, min(begin + most, length))


@dataclass(frozen=True)
class Study:
    """A model and texts.

    Attributes:
        model: an expanded model in evaluation mode.
        tokenizer: its tokenizer.
        learn: texts of what it was to learn.
        retain: texts of what it must not forget; may be none.
        settings: how much is looked at.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    learn: Sequence[Text]
    retain: Sequence[Text] = ()
    settings: StudySettings = field(default_factory=StudySettings)

    def __post_init__(self) -> None:
        """Refuse what has no branches to look at (ModelError)."""
        if not is_expanded(self.model):
            raise ModelError(
                f"{type(self.model).__name__} is not expanded: it has no copies beside frozen "
                "blocks, and no base inside, so there is nothing to compare. Give an expanded "
                "model, its run folder or sidecar; full tuning is measured by `controlllm eval`."
            )
        if len(sidecars := getattr(self.model, "sidecars", ())) > 1:
            raise ModelError(
                f"several sidecars ({', '.join(sidecars)}) are on this base: load the "
                "one that is to be probed by itself."
            )

    @property
    def shown(self) -> list[Text]:
        """The texts that are drawn."""
        return list(self.learn[: self.settings.shown])

    @property
    def every(self) -> list[Text]:
        """All texts."""
        return [*self.learn, *self.retain]

    @property
    def parts(self) -> list[int]:
        """Layers that are expanded, and -1 for expanded ends: what a dial by layer turns."""
        return [*self.model.blocks, *([ENDS] if self.model._expansion.ends else [])]

    @torch.no_grad()
    def logits(self, text: Text) -> Tensor:
        """Logits (1, T, V) on the CPU."""
        with evaluating(self.model):
            ids = text.ids.to(self.model.device)
            return self.model(input_ids=ids, use_cache=False).logits.float().cpu()

    def base_logits(self, text: Text) -> Tensor:
        """Those of its base (1, T, V)."""
        inputs = {"input_ids": text.ids, "use_cache": False}
        return Reference(self.model).forward(**inputs).float().cpu()

    def losses(self, texts: Sequence[Text], base: bool = False) -> list[tuple[float, int]]:
        """Sum of the cross-entropy in nats, and the number of targets, of each text."""
        ask = self.base_logits if base else self.logits
        found = [cross_entropy_sum(ask(text), text.labels) for text in texts]
        return [(total.item(), int(count)) for total, count in found]


@contextmanager
def own_dial(model: Any) -> Iterator[None]:
    """Inside, the dial may be turned; afterwards it stands, and the config says, what they did."""
    parts = model._expansion.parts()
    dials, config = [part.dial for part in parts], model.config.expansion
    try:
        yield
    finally:
        for part, dial in zip(parts, dials, strict=True):
            part.dial = dial
        model.config.expansion = config
        off = all(isinstance(dial, int | float) and dial == 0 for dial in dials)
        switch_adapters(model, on=not off)


def read_texts(
    source: SourceConfig,
    tokenizer: PreTrainedTokenizerBase,
    settings: StudySettings | None = None,
    data: DataConfig | None = None,
) -> list[Text]:
    """The first texts of a file or a data set, rendered as in training and cut to their length.

    Args:
        source: where they lie.
        tokenizer: of the model.
        settings: how many there are, and how long.
        data: how rows are rendered.

    Raises:
        DataError: it is missing, empty or unreadable.
    """
    settings = settings or StudySettings()
    config = replace(
        data or DataConfig(),
        max_length=settings.max_length,
        max_eval_samples=settings.max_texts,
        max_eval_tokens=None,
        packing=False,
    )
    examples, _ = read_examples(source, tokenizer, config)
    return [_text(example, tokenizer) for example in examples]


def _text(example: Example, tokenizer: PreTrainedTokenizerBase) -> Text:
    ids, labels = (torch.tensor(x.tolist())[None] for x in (example.input_ids, example.labels))
    return Text(ids, labels, tokenizer)
