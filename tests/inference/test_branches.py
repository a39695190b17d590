"""A sidecar that was trained beside others speaks with them: in a chat, and where it is served."""

from typing import Any

import pytest
import torch
from tests.inference.conftest import output, written_chat
from tests.laws.models import logits

from controlllm import expand, expand_beside
from controlllm.inference.engine.dials import Dials
from controlllm.inference.engine.protocol import Voice


@pytest.fixture
def branched(pico_llama: Any) -> Any:
    """B beside A, both changed, and calibrated to 0.5 and 0.75."""
    model = expand(pico_llama(), num_blocks=2)
    for name in ("a", "b"):
        if name == "b":
            model = expand_beside(model, "b", earlier="a", num_blocks=2)
        generator = torch.Generator().manual_seed(ord(name))
        with torch.no_grad():
            for _, parameter in model.trainable_parameter_groups()["expanded"]:
                parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    model.set_alpha({"a": 0.5, "b": 0.75})
    return model.eval()


def test_a_name_means_the_stage_that_it_was(branched):
    said = {
        name: (branched.set_alpha(alphas), logits(branched))[1]
        for name, alphas in {
            "base": {},
            "a": {"a": 0.5},
            "b": {"a": 0.5, "b": 0.75},
            "b@0.2": {"a": 0.5, "b": 0.2},
            "both": {"a": 0.1, "b": 0.2},
        }.items()
    }
    branched.set_alpha({"a": 0.5, "b": 0.75})
    dials = Dials(branched, "tuned")
    assert dials.sidecars == ("b", "a")  # what is meant if nobody names one comes first
    for name, alphas in {
        "base": (),
        "a": (("a", None),),
        "b": (("b", None),),
        "b@0.2": (("b", 0.2),),
        "both": (("a", 0.1), ("b", 0.2)),
    }.items():
        dials.speak_as(Voice(alphas))
        assert torch.equal(logits(branched), said[name]), name


def test_the_chat_begins_with_the_newest(branched, pico_tokenizer):
    together = logits(branched)
    chat = written_chat(branched, pico_tokenizer)
    assert torch.equal(logits(branched), together)
    chat.handle("/sidecar")
    assert output(chat) == "sidecars: a, b (answers)\n"
    chat.handle("/alpha 0.2")
    assert {n: e.dial for n, e in branched.expansions.items()} == {"a": 0.5, "b": 0.2}
    turned = logits(branched)
    branched.set_alpha({"a": 0.5, "b": 0.2})
    assert torch.equal(logits(branched), turned)
    chat.handle("/sidecar a")
    with branched.standing({"a": 0.5}):
        alone = logits(branched)
    assert torch.equal(logits(branched), alone)
    chat.handle("/alpha a=0.1 b=0.3")
    with branched.standing({"a": 0.1, "b": 0.3}):
        blend = logits(branched)
    assert torch.equal(logits(branched), blend)
