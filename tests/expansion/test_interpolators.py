import math
from itertools import pairwise

import pytest
import torch

from controlllm.expansion import INTERPOLATORS, Interpolator

D = 6
NAMES = pytest.mark.parametrize("name", INTERPOLATORS.names())


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def disturbed(name):
    """An interpolator off its start, but for prog's map, which must stay the identity."""
    interpolator = INTERPOLATORS.get(name)(D, train_alpha=True)
    with torch.no_grad():
        for key, parameter in interpolator.named_parameters():
            if key != "projection":
                parameter.add_(draw(*parameter.shape, seed=1))
    return interpolator


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dial", [None, 0.0, 0.37, 1.0])
def test_equal_branches_come_out_bit_for_bit(name, dtype, dial):
    p = draw(2, 4, D).to(dtype)
    out, _ = disturbed(name)(draw(2, 4, D, seed=2).to(dtype), p, p.clone(), dial)
    assert out.dtype == dtype
    assert torch.equal(out, p)


@NAMES
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8])
def test_alpha_is_where_it_starts(name, alpha):
    interpolator = INTERPOLATORS.get(name)(D, alpha=alpha)
    _, used = interpolator(*(draw(2, 3, D, seed=seed) for seed in range(3)))
    expected = float(alpha >= 0.5) if name == "moe" else alpha
    torch.testing.assert_close(used.broadcast_to(2, 3, 1), torch.full((2, 3, 1), expected))


@pytest.mark.parametrize(
    "name", [n for n in INTERPOLATORS.names() if INTERPOLATORS.get(n).constant]
)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_a_constant_alpha_are_exact(name, alpha):
    x, p, e = (draw(2, 3, D, seed=seed) for seed in range(3))
    out, used = INTERPOLATORS.get(name)(D, alpha=alpha)(x, p, e)
    assert used.item() == alpha
    torch.testing.assert_close(out, e if alpha else p, rtol=1e-6, atol=1e-6)


@NAMES
def test_which_parameters_train(name):
    kinds = [
        {
            k
            for k, p in INTERPOLATORS.get(name)(D, train_alpha=train).named_parameters()
            if p.requires_grad
        }
        for train in (False, True)
    ]
    gates = {"weight", "bias"}
    maps = {"projection"} if name in ("prog", "proj") else set()
    if INTERPOLATORS.get(name).constant:
        assert kinds == [maps, maps | {"logit"}]
    else:
        assert kinds == [gates, gates]


@NAMES
def test_gradients_reach_the_branches_and_the_gate(name):
    interpolator = disturbed(name)
    x, p, e = (draw(2, 3, D, seed=seed).requires_grad_() for seed in range(3))
    interpolator(x, p, e)[0].square().sum().backward()
    for tensor in (
        p,
        e,
        *(v for k, v in interpolator.named_parameters() if (name, k) != ("proj", "projection")),
    ):
        assert tensor.grad is not None and tensor.grad.abs().max() > 0


def pair_at(theta, length=1.7, seed=3):
    """A float32 pair of vectors (1, 1, D) at an angle, worked out in float64."""
    basis, _ = torch.linalg.qr(draw(D, 2, seed=seed).double())
    p = 2.0 * basis[:, 0]
    e = length * (math.cos(theta) * basis[:, 0] + math.sin(theta) * basis[:, 1])
    return p.float()[None, None], e.float()[None, None]


ANGLES = [0.0, 1e-7, 1e-5, 5e-4, 9.9e-4, 1.01e-3, 2e-3, 0.1, 1.0, math.pi / 2, 3.0]


@pytest.mark.parametrize("theta", ANGLES)
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_slerp_is_the_formula_at_every_angle(theta, alpha):
    p, e = pair_at(theta)
    out, _ = INTERPOLATORS.get("slerp")(D)(p, p, e, alpha)
    if theta < 1e-8:
        expected = (1 - alpha) * p + alpha * e
    else:
        a, b = (math.sin(w * theta) / math.sin(theta) for w in (1 - alpha, alpha))
        expected = a * p.double() + b * e.double()
    torch.testing.assert_close(out.double(), expected.double(), rtol=2e-4, atol=2e-6)


def test_slerp_is_smooth_across_the_switch():
    slerp = INTERPOLATORS.get("slerp")(D)
    steps = [
        slerp(p, p, e, 0.3)[0] for p, e in map(pair_at, torch.linspace(8e-4, 1.2e-3, 50).tolist())
    ]
    jumps = torch.stack([(b - a).norm() for a, b in pairwise(steps)])
    assert jumps.max() < 3 * jumps.median()


@pytest.mark.parametrize(
    "theta", [*ANGLES, math.pi - 1e-2, math.pi - 1e-3, math.pi - 1e-5, math.pi]
)
def test_slerp_has_finite_values_and_gradients_at_every_angle(theta):
    slerp = INTERPOLATORS.get("slerp")(D, train_alpha=True)
    p, e = (t.clone().requires_grad_() for t in pair_at(theta))
    out, _ = slerp(p, p, e)
    out.square().sum().backward()
    assert torch.isfinite(out).all()
    for tensor in (p, e, slerp.logit):
        assert torch.isfinite(tensor.grad).all()


def test_slerp_of_zero_vectors_is_finite():
    slerp = INTERPOLATORS.get("slerp")(D)
    p, e = torch.zeros(1, 2, D, requires_grad=True), torch.zeros(1, 2, D, requires_grad=True)
    out, _ = slerp(p, p, e)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(1, 2, D))
    assert torch.isfinite(p.grad).all() and torch.isfinite(e.grad).all()


def test_slerp_decides_token_by_token():
    near, far = pair_at(1e-5), pair_at(1.0)
    both = [torch.cat([a, b], dim=1) for a, b in zip(near, far, strict=True)]
    slerp = INTERPOLATORS.get("slerp")(D)
    out = slerp(both[0], *both)[0]
    assert torch.equal(out[:, :1], slerp(near[0], *near)[0])
    assert torch.equal(out[:, 1:], slerp(far[0], *far)[0])


def test_moe_ties_go_to_the_expanded_expert():
    x, p, e = (draw(2, 3, D, seed=seed) for seed in range(3))
    out, alpha = INTERPOLATORS.get("moe")(D)(x, p, e)
    assert torch.equal(out, e)
    assert torch.equal(alpha, torch.ones(2, 3, 1))


def test_prog_starts_as_the_exact_identity():
    prog = INTERPOLATORS.get("prog")(D)
    p = draw(2, 3, D)
    assert torch.equal(prog.project(p), p)


def test_the_joined_state_has_the_frozen_branches_type():
    p, e = draw(1, 2, D).bfloat16(), draw(1, 2, D, seed=1)
    for name in INTERPOLATORS.names():
        assert INTERPOLATORS.get(name)(D)(p, p, e)[0].dtype == torch.bfloat16


def test_a_new_interpolator_joins_by_its_name():
    from controlllm import ExpansionConfig
    from controlllm.common.errors import ConfigError

    name = "test-only-mean"
    with pytest.raises(ConfigError, match=name):
        ExpansionConfig(interpolator=name)

    class Mean(Interpolator):
        def __init__(self, hidden_size, alpha=0.5, train_alpha=False):
            super().__init__(hidden_size, alpha, train_alpha)

        def gate(self, x, pretrained, expanded):
            return torch.full((1,), 0.5)

    INTERPOLATORS.register(name)(Mean)
    try:
        assert ExpansionConfig(interpolator=name)
        p, e = draw(1, 2, D), draw(1, 2, D, seed=1)
        torch.testing.assert_close(Mean(D)(p, p, e)[0], (p + e) / 2)
    finally:
        del INTERPOLATORS._things[name]
