import copy

import pytest
import torch
from tests.evaluate.samples import padded

from controlllm.common.errors import ModelError
from controlllm.evaluate import average_weights, averaging_curve, evaluate_losses


@pytest.fixture
def models(pico_llama):
    """A base, and the same weights moved a little."""
    base, tuned = pico_llama(tie_word_embeddings=True), pico_llama(tie_word_embeddings=True)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return base, tuned


def test_the_ends_are_the_two_models_exactly(models, documents):
    base, tuned = models
    batches = [padded(documents)]
    for weight, model in ((0.0, base), (1.0, tuned)):
        mixed = average_weights(base, tuned, weight)
        assert evaluate_losses(mixed, batches) == evaluate_losses(model, batches)
        assert mixed.lm_head.weight is mixed.model.embed_tokens.weight


def test_half_way_is_the_mean_of_the_weights(models):
    base, tuned = models
    mixed = average_weights(base, tuned, 0.5)
    expected = (base.model.norm.weight + tuned.model.norm.weight) / 2
    torch.testing.assert_close(mixed.model.norm.weight, expected)


def test_a_base_in_bfloat16_that_was_tuned_in_float32(models):
    base, tuned = models
    rounded = copy.deepcopy(base).bfloat16()
    half = average_weights(rounded, tuned, 0.5)
    for name, weight in half.named_parameters():
        start = rounded.get_parameter(name).float()
        torch.testing.assert_close(weight, (start + tuned.get_parameter(name)) / 2)


def test_the_curve_is_measured_and_neither_model_is_changed(models, documents):
    before = [[p.clone() for p in model.parameters()] for model in models]
    sets = {"set": [padded(documents)]}
    curve = averaging_curve(models, sets, sets, 0.5, weights=[0.5, 1.0], refine_steps=1)
    assert curve.dial == "weight of the tuned model"
    assert curve.points[0].alpha == 0.0 and curve.points[0].forgetting == 0.0
    assert curve.points[0].retain["set"].kl == 0.0
    tuned = evaluate_losses(models[1], sets["set"])
    assert curve.points[-1].learn_loss == pytest.approx(tuned.loss, abs=1e-6)
    for model, parameters in zip(models, before, strict=True):
        assert all(map(torch.equal, model.parameters(), parameters))


def test_models_of_different_shape_are_refused(pico_llama):
    with pytest.raises(ModelError, match=r"parameters differ, first at '.*layers\.2"):
        average_weights(pico_llama(num_hidden_layers=2), pico_llama(num_hidden_layers=3), 0.5)
