"""What a model writes, held against what it should have written.

extraction  The answer inside a text: the whole of it, its last number, what follows a marker
generation  Many prompts at a time, on the processes of a run: the texts that a model writes
metrics     Numbers from texts and references, by name; a metric of one's own joins by name
samples     Texts for people: a table of prompts, references and texts, in Markdown and JSON lines
targets     Teacher forcing: which tokens of the right answer a model would have written

    register_metric("length", lambda texts, references: {"length": mean_length(texts)})
    score_texts(["rouge", "bleu", "length"], texts, references)

Nothing of an optional package is imported before a metric is asked for.
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.evaluate.texts.extraction import EXTRACTORS, register_extractor
    from controlllm.evaluate.texts.generation import Written, write_texts
    from controlllm.evaluate.texts.metrics import (
        METRICS,
        Metric,
        check_metrics,
        needs_of,
        register_metric,
        score_each,
        score_texts,
    )
    from controlllm.evaluate.texts.samples import Compared, Sample, as_markdown
    from controlllm.evaluate.texts.targets import TargetScore, score_targets

__all__ = [
    "EXTRACTORS",
    "METRICS",
    "Compared",
    "Metric",
    "Sample",
    "TargetScore",
    "Written",
    "as_markdown",
    "check_metrics",
    "needs_of",
    "register_extractor",
    "register_metric",
    "score_each",
    "score_targets",
    "score_texts",
    "write_texts",
]

__getattr__, __dir__ = lazy_names(__name__)
