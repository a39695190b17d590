"""What a probe is: a function from a study to a finding, by name.

    @PROBES.register("mine")
    def mine(study: Study) -> Finding: ...

How to write one: docs/extending/probe.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from controlllm.common.registry import Registry
from controlllm.evaluate.judging.html import Child
from controlllm.probe.study import Study

__all__ = ["PROBES", "Embedding", "Finding", "Probe"]


@dataclass(frozen=True)
class Embedding:
    """Vectors for TensorBoard's projector.

    Attributes:
        name: of the set of vectors.
        vectors_ND: one row for each thing.
        header: what is known of each.
        rows: it, one list for each vector.
    """

    name: str
    vectors_ND: Tensor
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Finding:
    """What a probe found, ready to be shown.

    Attributes:
        title: of its section.
        shows: what its pictures show, in a sentence.
        look_for: what a reader should look for in them.
        result: what came out, in a sentence; also printed.
        parts: pieces of the page (`evaluate.judging.html`): strangers' texts in them are escaped.
        scalars: numbers by name and layer, for TensorBoard.
        embeddings: vectors for its projector.
        layers: layers that a next expansion could do with; () = nothing is suggested.
    """

    title: str
    shows: str
    look_for: str
    result: str
    parts: Sequence[Child] = ()
    scalars: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    embeddings: Sequence[Embedding] = ()
    layers: tuple[int, ...] = ()


Probe = Callable[[Study], Finding]

OWN = ("movement", "alpha", "tokens", "blocks", "lens", "attention", "analogies", "dial")
"""In the order of the page."""

PROBES: Registry[Probe] = Registry("probes", OWN, home="controlllm.probe.probes")
"""What can be looked at. A probe raises a `ModelError` that says why where it cannot look."""
