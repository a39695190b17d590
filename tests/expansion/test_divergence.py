import pytest
import torch

from controlllm.expansion import DIVERGENCES

STATES = pytest.mark.parametrize("name", ["mse", "nmse", "cosine", "dot"])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def divergence(name, p, e, x=None):
    return DIVERGENCES.get(name)(p, e, torch.zeros_like(p) if x is None else x)


@STATES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zero_where_equal_and_float32(name, dtype):
    p = draw(2, 3, 8).to(dtype)
    d_BT = divergence(name, p, p.clone())
    assert d_BT.dtype == torch.float32
    assert d_BT.shape == (2, 3)
    assert (d_BT >= 0).all() and d_BT.max() < 1e-12


@STATES
def test_never_negative_and_positive_where_different(name):
    assert (divergence(name, draw(2, 3, 8), draw(2, 3, 8, seed=1)) > 0).all()


@STATES
def test_finite_gradients_where_equal_and_at_zero(name):
    for p in (draw(1, 3, 8), torch.zeros(1, 3, 8)):
        e = p.clone().requires_grad_()
        divergence(name, p, e).sum().backward()
        assert torch.isfinite(e.grad).all()


def test_by_hand():
    p = torch.tensor([[[3.0, 4.0]]])
    e = torch.tensor([[[4.0, 3.0]]])
    assert divergence("mse", p, e).item() == pytest.approx(1.0)
    assert divergence("nmse", p, e).item() == pytest.approx(2 / 25)
    assert divergence("nmse", p, e, x=torch.tensor([[[3.0, 3.0]]])).item() == pytest.approx(2.0)
    assert divergence("cosine", p, e).item() == pytest.approx(0.5 * (1 - 24 / 25) ** 2, rel=1e-4)
    assert divergence("dot", p, 2 * p).item() == pytest.approx(0.5 * 25.0)
    assert divergence("cosine", p, -p).item() == pytest.approx(1.5)  # smooth-L1 of 2


def test_attention_maps_by_hand():
    p = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    e = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])
    expected = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    d_BT = DIVERGENCES.get("attention")(p, e, torch.zeros(1, 2, 4))
    torch.testing.assert_close(d_BT, torch.tensor([[0.0, expected.item()]]))


def test_masked_keys_cost_nothing_and_give_finite_gradients():
    p = torch.tensor([[[[0.0, 1.0]]]])
    scores = torch.tensor([[[[-torch.inf, 0.0]]]], requires_grad=True)
    e = scores.softmax(-1)
    e.retain_grad()
    d_BT = DIVERGENCES.get("attention")(p, e, torch.zeros(1, 1, 4))
    d_BT.sum().backward()
    assert d_BT.item() == 0
    assert torch.isfinite(e.grad).all()


def test_the_relative_divergence_has_no_gradient_through_its_denominator():
    p, e, x = (draw(1, 2, 4, seed=seed).requires_grad_() for seed in range(3))
    divergence("nmse", p, e, x).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(p.grad, -e.grad)


def test_the_relative_divergence_ignores_scale():
    p, e, x = (draw(1, 2, 4, seed=seed) for seed in range(3))
    torch.testing.assert_close(
        divergence("nmse", 100 * p, 100 * e, 100 * x), divergence("nmse", p, e, x)
    )
