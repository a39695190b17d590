"""The optimizer's state by name: taken, made anew, filled, and the same steps follow."""

import copy

import pytest
import torch
from torch import nn

from controlllm.checkpoint.training.codec import pack, unpack
from controlllm.checkpoint.training.optimizer import (
    make_optimizer_state,
    optimizer_state,
    restore_optimizer,
)
from controlllm.checkpoint.training.saved import OPTIMIZER_PREFIX


def step(model, optimizer, scheduler, times=1):
    generator = torch.Generator().manual_seed(int(scheduler.last_epoch))
    for _ in range(times):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        scheduler.step()


def trainer(model, rate):
    groups = [{"params": [model.weight], "lr": rate()}, {"params": [model.bias], "lr": rate()}]
    optimizer = torch.optim.AdamW(groups, foreach=False)
    factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / (1 + done))
    return optimizer, factor


@pytest.mark.parametrize("rate", [lambda: 0.1, lambda: torch.tensor(0.1)])
def test_a_fresh_optimizer_goes_on_where_another_stopped(rate):
    """Also where rates are tensors, which schedules change in place."""
    model = nn.Linear(3, 2)
    optimizer, scheduler = trainer(model, rate)
    step(model, optimizer, scheduler, times=3)
    tensors, rest = optimizer_state(model, optimizer)
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    rest = unpack(*pack(copy.deepcopy(rest)))
    schedule = copy.deepcopy(scheduler.state_dict())
    twin = copy.deepcopy(model)

    other, follower = trainer(twin, rate)
    kinds = set()
    other.register_step_pre_hook(lambda o, *_: kinds.update(type(g["lr"]) for g in o.param_groups))
    make_optimizer_state(other)
    assert kinds == {type(rate())}
    assert all(
        torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True)
    )
    targets, _ = optimizer_state(twin, other)
    assert targets.keys() == saved.keys()
    with torch.no_grad():
        for name, tensor in targets.items():
            tensor.copy_(saved[name])
    restore_optimizer(twin, other, set(saved), rest)
    follower.load_state_dict(schedule)
    assert [float(group["lr"]) for group in other.param_groups] == pytest.approx([0.025, 0.025])

    for one in ((model, optimizer, scheduler), (twin, other, follower)):
        step(*one, times=2)
    assert all(
        torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True)
    )


def test_a_parameter_without_state_has_none_afterwards():
    model = nn.Linear(3, 2)
    optimizer, _ = trainer(model, lambda: 0.1)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    tensors, rest = optimizer_state(model, optimizer)
    assert {name.removeprefix(OPTIMIZER_PREFIX).split("/")[0] for name in tensors} == {"weight"}
    other, _ = trainer(model, lambda: 0.1)
    make_optimizer_state(other)
    restore_optimizer(model, other, set(tensors), rest)
    assert list(other.state) == [model.weight]
