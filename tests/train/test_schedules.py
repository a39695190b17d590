"""Every schedule against numbers worked out by hand."""

import math

import pytest
import torch

from controlllm.common.errors import ConfigError
from controlllm.train import TrainingConfig
from controlllm.train.step.optim import make_optimizer, make_scheduler
from controlllm.train.step.schedules import SCHEDULES, check_schedule, learning_rate_factor


def factors(total, **settings):
    config = TrainingConfig(**settings)
    return [learning_rate_factor(step, config, total) for step in range(total + 1)]


def test_cosine_by_hand():
    got = factors(10, warmup_steps=2, min_lr_rate=0.2)
    assert got[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert got[6] == pytest.approx(0.2 + 0.8 * 0.5)
    assert got[4] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert got[10] == pytest.approx(0.2)


def test_linear_and_constant_by_hand():
    linear = factors(4, warmup_steps=0, lr_scheduler_type="linear", min_lr_rate=0)
    assert linear == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert factors(3, warmup_steps=0, lr_scheduler_type="constant") == [1, 1, 1, 1]


WSD = {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 1, "lr_decay_steps": 4}


def test_wsd_by_hand():
    """Ten steps: one of warm-up at 1/2, five at the peak, four down to a fifth."""
    linear = factors(10, **WSD, min_lr_rate=0.2)
    assert linear == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(
    ("shape", "fall"),
    [("cosine", [0.8535534, 0.5, 0.1464466, 0]), ("1-sqrt", [0.5, 0.2928932, 0.1339746, 0])],
)
def test_shapes_of_the_decay_by_hand(shape, fall):
    """At a quarter, a half, three quarters and the end: (1 + cos(pi q)) / 2 and 1 - sqrt(q)."""
    got = factors(10, **WSD, lr_decay_type=shape, min_lr_rate=0)
    assert got[:7] == [0.5, 1, 1, 1, 1, 1, 1]
    assert got[7:] == pytest.approx(fall)


def test_wsd_without_decay_stays():
    assert factors(4, **(WSD | {"lr_decay_steps": 0})) == [0.5, 1, 1, 1, 1]


def test_steps_by_hand():
    """From the fifth and from the eighth step on a half each time; the minimum plays no part."""
    settings = {"lr_scheduler_type": "step", "lr_gamma": 0.5, "warmup_steps": 2}
    expected = [1 / 3, 2 / 3, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert factors(10, **settings, lr_milestones=[5, 8]) == pytest.approx(expected)
    assert factors(10, **settings, lr_milestones=[0.5, 0.8]) == pytest.approx(expected)


def test_shares_below_one_are_of_all_steps():
    assert factors(20, warmup_steps=0.1) == factors(20, warmup_steps=2)
    wsd = {"lr_scheduler_type": "warmup_stable_decay"}
    assert factors(20, **wsd, lr_decay_steps=0.25) == factors(20, **wsd, lr_decay_steps=5)


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_past_the_end_it_stays_as_at_the_end(name):
    milestones = [0.5] if name == "step" else []
    config = TrainingConfig(lr_scheduler_type=name, lr_milestones=milestones)
    at_end = learning_rate_factor(100, config, 100)
    assert learning_rate_factor(500, config, 100) == at_end
    assert at_end == pytest.approx(1.0 if name == "constant" else 0.1)


def test_every_schedule_drives_every_group(pico_llama):
    """Rates of groups keep their ratio, whatever the schedule."""
    model = pico_llama()
    for name in SCHEDULES.names():
        milestones = [2] if name == "step" else []
        config = TrainingConfig(
            lr_scheduler_type=name, lr_milestones=milestones, learning_rate=0.5, warmup_steps=1
        )
        optimizer = make_optimizer(model, config)
        scheduler = make_scheduler(optimizer, config, total_steps=6)
        for step in range(6):
            expected = 0.5 * learning_rate_factor(step, config, 6)
            assert [group["lr"] for group in optimizer.param_groups] == [expected] * 2
            optimizer.step()
            scheduler.step()


def test_a_run_within_its_warm_up_is_warned_of():
    config = TrainingConfig(warmup_steps=100)
    with pytest.warns(UserWarning, match=r"never reaches its peak"):
        make_scheduler(make_optimizer(torch.nn.Linear(2, 2), config), config, total_steps=100)


def test_warm_up_and_decay_must_fit_into_the_run():
    config = TrainingConfig(
        lr_scheduler_type="warmup_stable_decay", warmup_steps=60, lr_decay_steps=0.5
    )
    with pytest.raises(ConfigError, match=r"warmup_steps=60 .*decay_steps=50 .* 100 steps"):
        check_schedule(config, 100)
    check_schedule(config, 120)


def test_milestones_that_never_come_are_warned_of():
    config = TrainingConfig(lr_scheduler_type="step", lr_milestones=[50, 100])
    with pytest.warns(UserWarning, match=r"\[100\] lie beyond the 100 steps"):
        check_schedule(config, 100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_scheduler_type": "step"}, r"lr_milestones=\[\] .*'step'"),
        ({"lr_milestones": [5]}, r"lr_milestones=\[5\] .*'cosine'"),
        ({"lr_scheduler_type": "step", "lr_milestones": [8, 5]}, "rise"),
        ({"lr_scheduler_type": "step", "lr_milestones": [5, 5]}, "rise"),
        ({"lr_scheduler_type": "step", "lr_milestones": [0, 5]}, "above 0"),
        ({"lr_scheduler_type": "step", "lr_milestones": [5], "lr_gamma": 1.5}, "lr_gamma=1.5"),
        ({"lr_scheduler_type": "warmup_stable"}, "Did you mean 'warmup_stable_decay'"),
        ({"lr_decay_type": "sqrt"}, "Did you mean '1-sqrt'"),
        ({"lr_decay_steps": -1}, "lr_decay_steps=-1"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_an_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**settings)
