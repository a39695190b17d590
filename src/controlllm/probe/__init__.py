"""What a forward pass of an expanded model looks like inside.

    with model.probe() as p:               # `expansion.surgery.recording`
        model(input_ids=ids)
    find(Study(model, tokenizer, texts), ["movement", "blocks"])  # findings by name

probes      One file per probe: what it measures, draws, and says of its picture
contract    What a probe is: a function from a study to a finding, by name
settings    How much a probe looks at, and how
study       What is looked at: a model, texts as it reads them, and the dial put back afterwards
quantities  How far the branches of a block are apart: pure functions
scalars     The same numbers in the course of a training
drawing     Heat maps and coloured texts, as pieces of a page
style       How they look
finding     All probes that are asked for, and the page that holds them
pairs       The forty analogies
board       Findings in TensorBoard: scalars by layer, and its projector
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.probe.contract import PROBES, Embedding, Finding
    from controlllm.probe.finding import find, probe_page
    from controlllm.probe.scalars import probe_scalars
    from controlllm.probe.settings import StudySettings
    from controlllm.probe.study import Study, Text, read_texts

__all__ = [
    "PROBES",
    "Embedding",
    "Finding",
    "Study",
    "StudySettings",
    "Text",
    "find",
    "probe_page",
    "probe_scalars",
    "read_texts",
]

__getattr__, __dir__ = lazy_names(__name__)
