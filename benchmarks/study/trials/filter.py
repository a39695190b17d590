"""A filter of what was trained, after training: W' = W_d C_new (C_new + strength * C_own)^-1.

W_d is a matrix of a copy less that of its twin; C are the mean second moments, per token, of what
the layer reads on new text and on text that the base wrote. W' is what keeps W_d's output on new
text and has none on own text, in the least squares, own text counting `strength` times. Alpha is
turned as always.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from benchmarks.study import trial
from torch import Tensor, nn

from controlllm.data import Batch
from controlllm.evaluate.forgetting.dial import Dial
from controlllm.expansion.method.ends import ExpandedEmbedding, ExpandedHead

__all__ = ["Trial"]

SEEN_AT = 0.2
"""Alpha at which inputs are seen."""


class Trial(trial.Trial):
    """Matrices of copied blocks are filtered before alpha is turned.

    Args:
        strength: what own text counts beside new text.
        ends: filter embedding and head, too; each token's row has the strength times how often it
            is in own text, by how often it is in new text.
    """

    def __init__(self, strength: float, ends: bool = False) -> None:
        self.strength, self.ends = strength, ends

    def dial(self, dial: Dial, chosen: Mapping[str, Sequence[Batch]]) -> Dial:
        """The same dial of filtered copies."""
        model: Any = dial.model
        layers, twins = linear_layers(model)
        dial.turn(SEEN_AT)
        texts = [batch for name, batches in chosen.items() if name != "new" for batch in batches]
        new, own = (moments(model, layers, batches) for batches in (chosen["new"], texts))
        for name, layer in layers.items():
            put(layer, twins[name], new.of[name], own.of[name], self.strength)
        if self.ends:
            rows = (own.often / new.often)[:, None] * self.strength
            filter_ends(model, new.of["norm"], own.of["norm"], rows)
        return dial


class Moments:
    """Sums over the real tokens of some batches, then means per token.

    Attributes:
        of: for each layer the second moments (in, in) of what it reads; `norm`: of what the final
            norm gives, which the head reads.
        often: how often each token is there.
    """

    def __init__(self, vocabulary: int) -> None:
        self.of: dict[str, Tensor] = {}
        self.often = torch.full((vocabulary,), 0.5).double()  # A token never seen is seldom.
        self.mask_BT = torch.empty(0)

    def see(self, name: str, states_BTD: Tensor) -> None:
        """Add what a layer reads."""
        rows = states_BTD[self.mask_BT].double()
        self.of[name] = self.of.get(name, 0) + rows.T @ rows


@contextmanager
def seen_by(seen: Moments, model: Any, layers: Mapping[str, nn.Linear]) -> Iterator[None]:
    """Inside, what layers and head read is added up."""

    def before(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.see(name, args[0])

    def after(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.see("norm", output)

    hooks = [m.register_forward_pre_hook(partial(before, name)) for name, m in layers.items()]
    hooks.append(model.get_decoder().norm.register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def moments(model: Any, layers: Mapping[str, nn.Linear], batches: Sequence[Batch]) -> Moments:
    """What layers, embedding and head read on some batches."""
    seen = Moments(model.get_input_embeddings().weight.shape[0])
    model.eval()
    with seen_by(seen, model, layers):
        for batch in batches:
            ids, mask = batch["input_ids"], batch["attention_mask"]
            seen.mask_BT = mask.bool()
            model(input_ids=ids, attention_mask=mask)
            seen.often += torch.bincount(ids[seen.mask_BT], minlength=len(seen.often))
    tokens = seen.often.sum()
    seen.of = {name: sums / tokens for name, sums in seen.of.items()}
    seen.often /= tokens
    return seen


def linear_layers(model: Any) -> tuple[dict[str, nn.Linear], dict[str, nn.Module]]:
    """Linear layers of all copies, and all modules beside them, by layer and name."""
    layers, twins = {}, {}
    for layer, block in model.blocks.items():
        for name, module in block.expanded.named_modules():
            if isinstance(module, nn.Linear):
                layers[f"{layer}.{name}"] = module
                twins[f"{layer}.{name}"] = block.pretrained.get_submodule(name)
    return layers, twins


def filter_ends(model: Any, new: Tensor, own: Tensor, strengths: Tensor) -> None:
    """Filter head and embedding; where they are one matrix, both uses count alike."""
    ends = {type(end): end for end in model.modules()}
    head, table = ends[ExpandedHead], ends[ExpandedEmbedding]
    one = torch.eye(len(new)).double()
    if head.expanded.weight is table.expanded.weight:
        scale = new.diagonal().mean()
        put(head.expanded, head.pretrained, new / scale + one, own / scale + one, strengths)
    else:
        put(head.expanded, head.pretrained, new, own, strengths)
        put(table.expanded, table.pretrained, one, one, strengths)


@torch.no_grad()
def put(layer: Any, twin: Any, new: Tensor, own: Tensor, strength: Tensor | float) -> None:
    """Filter a layer's weight (out, in), in place; each row may have a strength (out, 1).

    With own V = new V diag(mu) and V' new V = 1 the filter is V'^-1 diag(1 / (1 + strength mu)) V'.
    """
    ridge = 1e-6 * new.diagonal().mean() * torch.eye(len(new)).double()
    lower = torch.linalg.cholesky(new + ridge)
    half = torch.linalg.solve_triangular(lower, own, upper=False)
    inner = torch.linalg.solve_triangular(lower, half.T, upper=False)
    mu, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    trained, frozen = layer.weight.double(), twin.weight.double()
    kept = (trained - frozen) @ lower @ vectors / (1 + strength * mu.clamp_min(0))
    back = torch.linalg.solve_triangular(lower.T, vectors, upper=True).T
    layer.weight.copy_(frozen + kept @ back)
