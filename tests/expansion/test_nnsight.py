"""nnsight works on an expanded model as it is: branches are modules (docs/probes.md)."""

import pytest
import torch
from tests.laws.models import batch, logits, make_trained

nnsight = pytest.importorskip("nnsight", reason="nnsight is not installed")


def test_branches_are_read_and_a_block_is_left_out():
    model = make_trained("llama", "concat")
    layer = min(model.blocks)
    ids = batch()["input_ids"]
    wrapped = nnsight.NNsight(model)
    with wrapped.trace(ids):
        p = wrapped.base.model.layers[layer].pretrained.output.save()
        e = wrapped.base.model.layers[layer].expanded.output.save()
        out = wrapped.base.model.layers[layer].output.save()
    with model.probe() as seen:
        logits(model)
    assert torch.equal(p, seen.pretrained[layer]) and torch.equal(e, seen.expanded[layer])
    assert torch.equal(out, seen.merged[layer])
    with wrapped.trace(ids):
        block = wrapped.base.model.layers[layer]
        block.output = block.pretrained.output
        left_out = wrapped.output.logits.save()
    whole = logits(model)
    model.set_alpha({layer: 0.0})
    assert torch.equal(left_out, logits(model)) and not torch.equal(left_out, whole)
