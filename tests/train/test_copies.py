"""Frozen copies have in common what does not train, wherever the model that trains lies."""

import copy

import pytest
import torch
from tests.laws.architectures import make_base
from tests.laws.models import logits, train

from controlllm import expand
from controlllm.expansion.files.fingerprint import base_tensors
from controlllm.train.setup.copies import share_equal


def place(name: str) -> str:
    """The device of that name; `lazy` is torch's own second one on a CPU."""
    if name == "lazy":
        from torch._lazy import ts_backend

        ts_backend.init()
    return name


@pytest.mark.parametrize("name", ["cpu", "lazy", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_what_is_equal_is_in_common_on_the_models_device(name: str, gpu: str) -> None:
    device = place(gpu if name == "gpu" else name)
    torch.manual_seed(0)
    base = make_base("llama")
    stage = train(expand(copy.deepcopy(base), layers=[1, 3]))
    expected = logits(stage)
    model = copy.deepcopy(base).to(device)
    model.get_parameter("model.norm.weight").data *= 2  # folded into another base, it differs
    theirs = dict(base_tensors(model))
    share_equal(stage, model)
    common = {name for name, own in base_tensors(stage) if own is theirs[name]}
    assert theirs.keys() - common == {"model.norm.weight"}
    own = [p for p in stage.parameters() if id(p) not in {id(p) for p in theirs.values()}]
    assert {p.device.type for p in own} == {"cpu"}
    assert torch.equal(logits(stage.cpu()), expected)
