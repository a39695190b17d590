"""One file per probe: what it measures, draws, and says of its picture.

movement   |e - p| / |p| and cos(p, e): how far each copy has moved from its frozen twin
alpha      How much each token takes from each copy
tokens     Where the tuned model says something else: KL(base || tuned), change of log p
blocks     Leave one block out: which blocks carry the learning, which the forgetting
lens       What each branch would say, read through the last norm and the head
attention  Where each branch looks
analogies  Forty phrases "a is to b" in a plane, and in TensorBoard's projector
dial       One prompt, and the losses, over alpha
reading    What several of them ask: a pass as it is seen, means by layer, names
"""

from controlllm.probe.probes.alpha import alpha
from controlllm.probe.probes.analogies import analogies
from controlllm.probe.probes.attention import attention
from controlllm.probe.probes.blocks import blocks
from controlllm.probe.probes.dial import dial
from controlllm.probe.probes.lens import lens
from controlllm.probe.probes.movement import movement
from controlllm.probe.probes.tokens import tokens

__all__ = [
    "alpha",
    "analogies",
    "attention",
    "blocks",
    "dial",
    "lens",
    "movement",
    "tokens",
]
