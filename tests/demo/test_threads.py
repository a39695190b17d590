"""The number of threads is chosen by measuring, and given back."""

from collections.abc import Iterator

import pytest
import torch

from controlllm.demo import threads
from controlllm.demo.methods import load_base
from controlllm.demo.threads import quickest_threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


@pytest.mark.parametrize(("seconds", "expected"), [({1: 1.0, 2: 0.6}, 2), ({1: 1.0, 2: 9.0}, 1)])
def test_the_quicker_number_is_in_force(
    two_threads: None, monkeypatch: pytest.MonkeyPatch, seconds: dict, expected: int
) -> None:
    monkeypatch.setattr(threads, "_seconds", lambda model, limit: seconds[torch.get_num_threads()])
    with quickest_threads(load_base()[0]) as number:
        assert number == torch.get_num_threads() == expected
    assert torch.get_num_threads() == 2


def test_the_model_is_left_as_it_was(two_threads: None) -> None:
    model, _ = load_base()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with quickest_threads(model) as number:
        assert number in (1, 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
