"""How large a model's residual stream is, is a unit, not a fact: what has no unit must not see it.

The same function with the same weights, its stream 16 times as large (`benchmarks/scaled_base.py`).
A power of 2, so that float32 rounds alike.
"""

import pytest
import torch
import transformers
from benchmarks.scaled_base import with_larger_stream
from tests.laws.architectures import make_base
from tests.laws.models import batch, logits

from controlllm import expand
from controlllm.common.errors import ConfigError

SCALE = 16.0


def trained(base, steps=3, lr=0.01, **settings):
    """An expanded base after a few steps; the losses, and the divergences of the last step."""
    model = expand(base, **{"num_blocks": 2} | settings).train()
    parts = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(parts, lr=lr), []
    for _ in range(steps):
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.divergence, logits(model.eval())


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_a_larger_stream_is_the_same_function(name):
    base = make_base(name)
    assert torch.equal(logits(with_larger_stream(base, SCALE)), logits(base))


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("divergence", ["none", "nmse", "cosine"])
def test_what_has_no_unit_trains_alike(divergence, ends):
    settings = {"divergence": divergence, "expand_ends": ends}
    losses, distances, after = trained(make_base("llama"), **settings)
    scaled = trained(with_larger_stream(make_base("llama"), SCALE), **settings)
    assert scaled[0] == losses and scaled[1] == distances
    assert torch.equal(scaled[2], after)
    assert losses[-1] < losses[0] and (divergence == "none" or min(distances.values()) > 0)


@pytest.mark.parametrize("divergence", ["mse", "dot"])
def test_mse_is_in_units_of_the_stream(divergence):
    """One step from the same start: distances are 256 times as large, and hold the copies back."""
    settings = {"divergence": divergence, "steps": 2}
    _, distances, _ = trained(make_base("llama"), **settings)
    losses, scaled, _ = trained(with_larger_stream(make_base("llama"), SCALE), **settings)
    for layer, distance in distances.items():
        assert scaled[layer] > 10 * distance > 0
    assert losses[1] > losses[0]


def test_another_kind_of_model_is_refused():
    with pytest.raises(ConfigError, match="gpt2 cannot be written as a Granite"):
        with_larger_stream(make_base("gpt2"), SCALE)


@pytest.mark.parametrize("divergence", ["nmse", "cosine"])
def test_real_weights_train_alike(stories260k, divergence):
    """A trained model, in the classes of two families."""
    base = transformers.AutoModelForCausalLM.from_pretrained(stories260k, dtype="float32")
    twin = with_larger_stream(base, SCALE)
    assert torch.equal(logits(twin), logits(base))
    losses, distances, after = trained(base, divergence=divergence, lr=1e-3)
    assert trained(twin, divergence=divergence, lr=1e-3)[:2] == (losses, distances)
    assert min(distances.values()) > 0 and after.isfinite().all()
