from itertools import chain

import pytest
import torch
from tests.evaluate.samples import padded

from controlllm import ExpansionConfig, expand
from controlllm.common.distributed import ALONE
from controlllm.evaluate import Reference, RetentionReport, evaluate_losses
from controlllm.train.observe.metrics import set_metrics
from controlllm.train.observe.retention import (
    Best,
    ForgettingMeter,
    Measurement,
    better,
    over_budget,
)


def measured(learn, *forgetting):
    retain = {str(i): RetentionReport(2.0, 2.0 + f, 0.1, 10) for i, f in enumerate(forgetting)}
    return Measurement({"new": RetentionReport(5.0, learn, 0.0, 10)}, retain)


def test_the_best_learns_most():
    assert better(3, measured(4.0, 0.5), None, None) == Best(3, 4.0, 0.5)
    assert better(4, measured(3.9, 0.5), Best(3, 4.0, 0.5), None).step == 4
    assert better(4, measured(4.0, 0.1), Best(3, 4.0, 0.5), None) is None  # a tie keeps the first


def test_the_worst_retain_set_must_keep_to_the_budget():
    assert better(1, measured(4.0, 0.0625, 0.25), None, 0.125) is None
    assert better(1, measured(4.0, 0.0625, 0.125), None, 0.125) == Best(1, 4.0, 0.125)
    assert over_budget(measured(4.0, float("nan")).by_stage, 0.1) == ["base"]


def test_sets_may_be_missing():
    nothing = Measurement({}, {})
    assert nothing.forgetting is None and nothing.learn_loss is None
    assert not over_budget(nothing.by_stage, 0.0) and better(1, nothing, None, None) is None
    only_learn = Measurement(measured(4.0).learn, {})
    assert better(1, only_learn, None, 0.1) == Best(1, 4.0, None)


def test_a_loss_that_is_not_a_number_is_never_best():
    assert better(2, measured(float("nan"), 0.0), Best(1, 4.0, 0.0), None) is None
    assert better(2, measured(float("nan"), 0.0), None, None) is None


def test_the_gates_are_those_on_all_learn_sets(pico_llama):
    model = expand(pico_llama(), ExpansionConfig(num_blocks=2, interpolator="dlerp"))
    with torch.no_grad():
        for block in model.blocks.values():
            for parameter in block.interpolator.parameters():
                parameter += 0.5 * torch.randn_like(parameter)
    sets = {"a": [padded([[5, 6, 7]])], "b": [padded([[8, 9, 10, 11]])]}
    other = {"c": [padded([[12, 13]])]}
    for learn, retain, counted in ((sets, other, sets), ({}, sets, sets)):
        evaluate_losses(model, chain.from_iterable(counted.values()))
        expected = model.expansion.mean_alpha
        ForgettingMeter(model, {"base": Reference(model)}, learn, retain, ALONE).measure()
        assert model.expansion.mean_alpha == pytest.approx(expected)


def test_metric_names():
    report = {"x/y": RetentionReport(base_loss=2.0, loss=2.5, kl=0.3, tokens=10)}
    assert set_metrics("learn", report) == {
        "learn/x/y/loss": 2.5,
        "learn/x/y/base_loss": 2.0,
        "learn/x/y/gain": -0.5,
    }
    assert set_metrics("retain", report)["retain/x/y/forgetting"] == pytest.approx(0.5)
    assert set_metrics("retain", report)["retain/x/y/kl"] == 0.3
