"""Evaluations of real expanded models."""

import pytest
import torch
from tests.evaluate.samples import (
    packed,
    padded,
)

from controlllm import ExpansionConfig, expand
from controlllm.evaluate import (
    calibrate,
    evaluate_losses,
    measure_retention,
)


@pytest.fixture
def make(pico_llama):
    """`make(moved, **config)`: an expanded pico model, its trainable parts moved by that much."""

    def expanded(moved: float = 0.0, **config):
        model = expand(pico_llama(), ExpansionConfig(num_blocks=2, **config))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += moved * torch.randn(parameter.shape, generator=generator)
        return model

    return expanded


@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
@pytest.mark.parametrize("batch", [padded, packed])
def test_an_untrained_expansion_forgot_exactly_nothing(make, documents, structure, batch):
    model = make(structure=structure)
    report = measure_retention(model, [batch(documents)])
    assert (report.forgetting, report.kl) == (0.0, 0.0)
    assert report.base_loss == pytest.approx(
        evaluate_losses(model.unload(), [batch(documents)]).loss, abs=0
    )


def test_moved_blocks_are_measured_against_the_base_inside(make, documents, pico_llama):
    model = make(moved=0.1).train()
    report = measure_retention(model, [padded(documents)])
    assert report.base_loss == evaluate_losses(pico_llama(), [padded(documents)]).loss
    assert report.loss == evaluate_losses(model, [padded(documents)]).loss
    assert report.kl > 1e-4 and model.training


def test_calibration_measures_the_dial_and_sets_it(make, documents):
    model = make(moved=0.1)
    learn, retain = {"a": [padded(documents[:2])]}, {"b": [padded(documents[2:])]}
    curve = calibrate(model, learn, retain, 0.05, alphas=[0.25, 0.5])
    base = curve.points[0]
    assert (base.alpha, base.forgetting, base.retain["b"].kl) == (0.0, 0.0, 0.0)
    assert model.expansion.dial == curve.chosen.alpha
    assert evaluate_losses(model, learn["a"]).loss == curve.chosen.learn_loss
    by_label = {point.label: point for point in curve.points}
    assert by_label["trained"].learn == by_label["0.5"].learn  # lerp: fixed at 0.5


def test_the_mean_alpha_of_token_gates_is_recorded_before_the_dial(make, documents):
    model = make(moved=0.5, interpolator="dlerp")
    model.set_alpha(0.0)
    evaluate_losses(model, [padded(documents)])
    assert model.expansion.mean_alpha is None
    model.set_alpha(None)
    evaluate_losses(model, [padded(documents)])
    recorded = model.expansion.mean_alpha
    assert sorted(recorded) == sorted(model.blocks)
    assert all(0 < alpha < 1 for alpha in recorded.values())
    first = min(recorded)  # nothing that a dial changes lies below it
    model.set_alpha(0.5)
    evaluate_losses(model, [padded(documents)])
    assert model.expansion.mean_alpha[first] == pytest.approx(recorded[first], abs=1e-6)
    model.set_alpha(None)
    measure_retention(model, [packed(documents)])
    for layer, alpha in model.expansion.mean_alpha.items():
        assert alpha == pytest.approx(recorded[layer], abs=1e-5)


def test_a_calibrated_token_gate_can_be_left_as_trained(make, documents):
    model = make(moved=0.05, interpolator="dlerp")
    sets = {"set": [padded(documents)]}
    curve = calibrate(model, sets, sets, 100.0, alphas=[], refine_steps=0)
    assert [point.label for point in curve.points] == ["0", "trained"]
    if curve.chosen.alpha is None:
        assert model.expansion.mean_alpha is not None
