"""Numbers worked out by hand."""

import math

import pytest
import torch

from controlllm.probe.quantities import (
    attention_kl,
    cosine,
    relative_change,
    two_dimensions,
)


def test_distances_of_two_states():
    p = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]])
    e = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [0.0, 0.0], [6.0, 0.0]]])
    assert relative_change(p, e)[0].tolist() == pytest.approx([0, math.sqrt(2), 0, 2])
    assert cosine(p, e)[0].tolist() == pytest.approx([1, 0, 0, 1])
    assert relative_change(p.bfloat16(), e).dtype == torch.float32


def test_attention_apart_head_by_head():
    p = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.25, 0.75]]]])
    e = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.5, 0.5]]]])
    by_hand = (0 + 0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert attention_kl(p, e).tolist() == pytest.approx([0, by_hand], abs=1e-6)


def test_two_principal_components():
    flat = two_dimensions(torch.tensor([[-2.0, 0, 0], [2, 0, 0], [0, 1, 0], [0, -1, 0]]))
    torch.testing.assert_close(flat.abs(), torch.tensor([[2.0, 0], [2, 0], [0, 1], [0, 1]]))
    assert flat.max(0).values.tolist() == pytest.approx([2, 1])
    assert two_dimensions(torch.tensor([[1.0], [3.0]])).tolist() == [[-1, 0], [1, 0]]
