import copy
import math

import pytest
import torch
from tests.evaluate.samples import LN, OTHER, SAME, Bigram, DialledBigram, packed, padded

from controlllm.common.errors import DataError, ModelError
from controlllm.evaluate import (
    Reference,
    RetentionReport,
    mean_loss,
    measure_retention,
    worst_forgetting,
)


def test_by_hand():
    report = measure_retention(DialledBigram(SAME, OTHER), [padded([[0, 0, 1], [1, 1, 1, 1]])])
    assert report.tokens == 5
    assert report.base_loss == pytest.approx(-(4 * LN(0.75) + LN(0.25)) / 5, rel=1e-6)
    assert report.loss == pytest.approx(-(4 * LN(0.25) + LN(0.75)) / 5, rel=1e-6)
    assert report.forgetting == pytest.approx(3 / 5 * LN(3), rel=1e-6)
    assert report.gain == -report.forgetting
    # At every position KL = 3/4 ln(3/4 : 1/4) + 1/4 ln(1/4 : 3/4) = 1/2 ln 3.
    assert report.kl == pytest.approx(LN(3) / 2, rel=1e-6)


def test_a_frozen_copy_serves_models_without_a_base_inside():
    inside = measure_retention(DialledBigram(SAME, OTHER), [padded([[0, 1, 1]])])
    trained, base = Bigram(OTHER), Bigram(SAME)
    given = measure_retention(trained, [padded([[0, 1, 1]])], Reference(trained, copy=base))
    assert given == inside


def test_without_a_base_it_says_what_to_do(pico_llama):
    with pytest.raises(ModelError, match=r"Reference\(model, copy=base\)"):
        measure_retention(pico_llama(), [padded([[1, 2]])])


def test_batch_splits_and_packing_change_nothing(pico_llama, documents):
    model, base = pico_llama(seed=1).train(), pico_llama(seed=0)
    reference = Reference(model, copy=base)
    whole = measure_retention(model, [padded(documents)], reference)
    assert whole.kl > 0.1
    for batches in ([padded([d]) for d in documents], [packed(documents)]):
        report = measure_retention(model, batches, reference)
        assert report.tokens == whole.tokens
        for field in ("base_loss", "loss", "kl"):
            assert getattr(report, field) == pytest.approx(getattr(whole, field), abs=1e-5)
    assert model.training


def test_a_model_equal_to_its_base_forgot_exactly_nothing(pico_llama, documents):
    model = pico_llama()
    reference = Reference(model, copy=copy.deepcopy(model))
    report = measure_retention(model, [padded(documents)], reference)
    assert (report.forgetting, report.kl) == (0.0, 0.0)


def test_no_gradient_is_recorded(documents, pico_llama):
    model = pico_llama()
    reference = Reference(model, copy=pico_llama(seed=1))
    logits = reference.forward(input_ids=torch.tensor([documents[0]]))
    assert not logits.requires_grad and logits.shape == (1, len(documents[0]), 259)


def report(base_loss: float, loss: float) -> RetentionReport:
    return RetentionReport(base_loss=base_loss, loss=loss, kl=0.0, tokens=1)


def test_several_sets_the_worst_forgetting_and_the_mean_loss_count():
    reports = {"a": report(2.0, 2.25), "b": report(3.0, 2.75)}
    assert worst_forgetting(reports) == 0.25
    assert mean_loss(reports) == 2.5


def test_a_loss_that_is_not_a_number_is_never_within_a_budget():
    assert worst_forgetting({"a": report(2.0, 2.0), "b": report(2.0, math.nan)}) == math.inf


@pytest.mark.parametrize(("function", "word"), [(worst_forgetting, "retain"), (mean_loss, "learn")])
def test_no_sets_at_all_is_an_error(function, word):
    with pytest.raises(DataError, match=f"no {word} set"):
        function({})
