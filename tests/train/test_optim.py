import math

import pytest
import torch

from controlllm.common.errors import TrainingError
from controlllm.expansion import ExpansionConfig, expand
from controlllm.train import TrainingConfig
from controlllm.train.optim import (
    learning_rate_factor,
    make_optimizer,
    make_scheduler,
    parameter_groups,
)


def test_every_trained_parameter_is_in_one_group(pico_llama):
    config = ExpansionConfig(num_blocks=2, interpolator="dlerp", expand_ends=True)
    model = expand(pico_llama(), config)
    groups = parameter_groups(
        model, TrainingConfig(weight_decay=0.1, interpolator_learning_rate=1e-2)
    )
    grouped = [id(p) for group in groups for p in group["params"]]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trained)
    assert [g["name"] for g in groups] == ["matrices", "no_decay", "interpolators"]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.0]
    assert [g["lr"] for g in groups] == [5e-5, 5e-5, 1e-2]


def test_embeddings_norms_and_tied_heads_are_not_decayed(pico_llama):
    model = pico_llama(tie_word_embeddings=True)
    groups = {g["name"]: g["params"] for g in parameter_groups(model, TrainingConfig())}
    assert any(p is model.lm_head.weight for p in groups["no_decay"])
    assert all(p.ndim == 2 for p in groups["matrices"])
    assert any(p is model.model.norm.weight for p in groups["no_decay"])


def test_an_untied_head_is_decayed(pico_llama):
    model = pico_llama(tie_word_embeddings=False)
    groups = {g["name"]: g["params"] for g in parameter_groups(model, TrainingConfig())}
    assert any(p is model.lm_head.weight for p in groups["matrices"])


def test_nothing_to_train_is_an_error(pico_llama):
    with pytest.raises(TrainingError, match="no parameter"):
        make_optimizer(pico_llama().requires_grad_(False), TrainingConfig())


def factors(total, **settings):
    config = TrainingConfig(**settings)
    return [learning_rate_factor(step, config, total) for step in range(total + 1)]


def test_cosine_by_hand():
    got = factors(10, warmup_steps=2, min_learning_rate_ratio=0.2)
    assert got[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert got[6] == pytest.approx(0.2 + 0.8 * 0.5)
    assert got[4] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert got[10] == pytest.approx(0.2)


def test_linear_and_constant_by_hand():
    linear = factors(4, warmup_steps=0, lr_scheduler_type="linear", min_learning_rate_ratio=0)
    assert linear == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert factors(3, warmup_steps=0, lr_scheduler_type="constant") == [1, 1, 1, 1]


def test_warmup_below_one_is_a_share_of_all_steps():
    assert factors(20, warmup_steps=0.1) == factors(20, warmup_steps=2)


def test_a_step_past_the_end_keeps_the_minimum():
    config = TrainingConfig(min_learning_rate_ratio=0.1)
    assert learning_rate_factor(500, config, 100) == pytest.approx(0.1)


def test_decay_really_shrinks_only_the_matrices(pico_llama):
    model = pico_llama()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainingConfig(weight_decay=0.5, learning_rate=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert not changed & {"model.norm.weight", "model.embed_tokens.weight"}


def test_a_run_within_its_warm_up_is_warned_of():
    config = TrainingConfig(warmup_steps=100)
    with pytest.warns(UserWarning, match=r"never reaches its peak"):
        make_scheduler(make_optimizer(torch.nn.Linear(2, 2), config), config, total_steps=100)
