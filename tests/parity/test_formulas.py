"""Interpolators and divergences equal the values that `reference.py` works out in float64."""

import json

import pytest
import torch
from tests.parity import reference

from controlllm.expansion import DIVERGENCES, INTERPOLATORS

VALUES = json.loads(reference.VALUES.read_text())
B, T, D = reference.B, reference.T, reference.D


def given(name, dtype=torch.float32):
    return torch.tensor(VALUES["inputs"][name], dtype=dtype)


def states(dtype=torch.float32):
    return tuple(given(name, dtype) for name in ("x", "pretrained", "expanded"))


def make(name):
    """An interpolator with the reference's parameters."""
    interpolator = INTERPOLATORS.get(name)(D, alpha=0.5, train_alpha=True)
    with torch.no_grad():
        for parameter, value in parameters(interpolator, name):
            parameter.copy_(value.reshape(parameter.shape))
    return interpolator


def parameters(interpolator, name):
    if name in ("prog", "proj"):
        return [(interpolator.projection, given("projection"))]
    if name in ("lerp", "slerp"):
        return []
    bias = given("moe_bias" if name == "moe" else "bias")
    return [(interpolator.weight, given(f"{name}_weight")), (interpolator.bias, bias)]


def per_token(values):
    return torch.tensor(values).reshape(B, T, -1)


def test_the_values_are_what_the_script_writes():
    ours, theirs = flat(json.loads(json.dumps(reference.values()))), flat(VALUES)
    assert ours.keys() == theirs.keys()
    # The last digit of float64 differs from processor to processor.
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-15)


def flat(values, where=""):
    """Every number with the way to it."""
    if not isinstance(values, dict | list):
        return {where: values}
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    return {key: v for name, part in pairs for key, v in flat(part, f"{where}/{name}").items()}


def test_every_registered_name_has_values():
    assert set(VALUES["constant"]) | set(VALUES["gates"]) == set(INTERPOLATORS.names())
    assert set(VALUES["divergences"]) == set(DIVERGENCES.names())


@pytest.mark.parametrize("name", VALUES["constant"])
@pytest.mark.parametrize("index, alpha", list(enumerate(VALUES["alphas"])))
@pytest.mark.parametrize("way", ["constant", "dial"])
def test_constant_gates(name, index, alpha, way):
    if way == "constant":
        interpolator = INTERPOLATORS.get(name)(D, alpha=alpha)
        for parameter, value in parameters(interpolator, name):
            parameter.data.copy_(value)
        out, used = interpolator(*states())
    else:
        out, used = make(name)(*states(), dial=alpha)
    torch.testing.assert_close(out, per_token(VALUES["constant"][name][index]))
    torch.testing.assert_close(used, torch.tensor([alpha]))


@pytest.mark.parametrize("name", VALUES["gates"])
def test_token_gates(name):
    out, alpha = make(name)(*states())
    torch.testing.assert_close(out, per_token(VALUES["gates"][name]["out"]))
    torch.testing.assert_close(alpha, per_token(VALUES["gates"][name]["alpha"]))


def test_the_target_of_proj():
    target = make("proj").target(given("pretrained"))
    torch.testing.assert_close(target, per_token(VALUES["proj_target"]))


@pytest.mark.parametrize("name", VALUES["divergences"])
def test_divergences(name):
    x, pretrained, expanded = states()
    if name == "attention":
        pretrained, expanded = given("maps_pretrained"), given("maps_expanded")
    d_BT = DIVERGENCES.get(name)(pretrained, expanded, x)
    expected = torch.tensor(VALUES["divergences"][name]).reshape(B, T)
    torch.testing.assert_close(d_BT, expected, rtol=1e-5, atol=1e-6)


def numeric_gradient(function, point, step=1e-2):
    """Central differences of a float32 function, along one fixed random direction."""
    direction = torch.randn(point.shape, generator=torch.Generator().manual_seed(1))
    direction /= direction.norm()
    with torch.no_grad():
        slope = (function(point + step * direction) - function(point - step * direction)) / (
            2 * step
        )
    leaf = point.clone().requires_grad_()
    function(leaf).backward()
    return slope, (leaf.grad * direction).sum()


@pytest.mark.parametrize("name", [n for n in INTERPOLATORS.names() if n != "moe"])  # a step: below
@pytest.mark.parametrize("which", ["pretrained", "expanded"])
def test_gradients_of_interpolators(name, which):
    interpolator = make(name)
    x, pretrained, expanded = states()
    expanded[0, 1] += 0.1  # off the points where branches are parallel
    expanded[1, 0] += torch.arange(D) * 0.1
    weights = torch.randn(B, T, D, generator=torch.Generator().manual_seed(2))

    def function(moved):
        pair = (moved, expanded) if which == "pretrained" else (pretrained, moved)
        return (interpolator(x, *pair)[0] * weights).sum()

    point = pretrained if which == "pretrained" else expanded
    slope, gradient = numeric_gradient(function, point)
    torch.testing.assert_close(gradient, slope, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["mse", "nmse", "cosine", "dot"])
def test_gradients_of_divergences(name):
    x, pretrained, expanded = states()
    expanded[0, 1] += torch.arange(D) * 0.1
    expanded[1, 0] += torch.arange(D) * 0.1

    def function(moved):
        return DIVERGENCES.get(name)(pretrained, moved, x).sum()

    slope, gradient = numeric_gradient(function, expanded)
    torch.testing.assert_close(gradient, slope, rtol=1e-2, atol=1e-2)


def test_the_straight_through_gate_has_the_soft_gates_gradient():
    interpolator = make("moe")
    x, pretrained, expanded = states()
    interpolator(x, pretrained, expanded)[0].sum().backward()
    weight, bias = (
        p.detach().clone().requires_grad_() for p in (interpolator.weight, interpolator.bias)
    )
    soft = (x @ weight.T + bias).softmax(-1)[..., 1:]
    (soft * (expanded - pretrained)).sum().backward()
    torch.testing.assert_close(interpolator.weight.grad, weight.grad)
    torch.testing.assert_close(interpolator.bias.grad, bias.grad)
    assert weight.grad.abs().max() > 0
