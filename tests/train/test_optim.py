import pytest
import torch

from controlllm.checkpoint import load_checkpoint, newest_checkpoint
from controlllm.common.errors import ConfigError, TrainingError
from controlllm.expansion import ExpansionConfig, expand
from controlllm.train import TrainingConfig, train
from controlllm.train.step.optim import make_optimizer, make_scheduler, parameter_groups


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


def decayed(config, steps, total):
    """A matrix of ones after so many steps without a gradient; and a bias, which never decays."""
    layer = torch.nn.Linear(1, 1)
    for parameter in layer.parameters():
        torch.nn.init.ones_(parameter)
    optimizer = make_optimizer(layer, config)
    scheduler = make_scheduler(optimizer, config, total)
    for _ in range(steps):
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        scheduler.step()
    assert layer.bias.item() == 1
    return layer.weight.item()


def test_decay_by_the_rate_by_hand():
    """Rates 0.1 and 0.05 at ratio 2: decays 0.2 and 0.1, so 0.98 and then 0.995 of it are left."""
    settings = {"learning_rate": 0.1, "warmup_steps": 0, "lr_scheduler_type": "linear"}
    config = TrainingConfig(weight_decay_ratio=2.0, min_lr_rate=0, **settings)
    assert decayed(config, 1, total=2) == pytest.approx(0.98)
    assert decayed(config, 2, total=2) == pytest.approx(0.98 * 0.995)
    # A fixed decay of 0.2 falls with the rate once, not twice.
    config = TrainingConfig(weight_decay=0.2, min_lr_rate=0, **settings)
    assert decayed(config, 2, total=2) == pytest.approx(0.98 * 0.99)


def test_two_kinds_of_decay_exclude_one_another():
    with pytest.raises(ConfigError, match=r"weight_decay=0.1 .*weight_decay_ratio=0.1"):
        TrainingConfig(weight_decay=0.1, weight_decay_ratio=0.1)


def test_decay_by_the_rate_trains_alike_in_both_loops_and_over_a_resume(
    run_config, loaded, tmp_path
):
    def weights(name, **over):
        training = {"output_dir": str(tmp_path / name), "eval_steps": 100, **over}
        result = train(run_config(training=training), loaded())
        return load_checkpoint(newest_checkpoint(result.output_dir)).tensors

    ratio = {"weight_decay_ratio": 20.0}
    straight, plain = weights("straight", **ratio), weights("plain")
    hf = weights("hf", **ratio, backend="hf")
    weights("resumed", **ratio, max_tokens=2 * 4 * 32 - 100)
    resumed = weights("resumed", **ratio)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())
    assert all(torch.equal(tensor, hf[name]) for name, tensor in straight.items())
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in straight.items())


@pytest.mark.parametrize("size", [37, 1003, 4103])
def test_the_update_does_not_depend_on_how_a_tensor_is_cut(size):
    """Processes hold parts. torch's fused kernel for CPUs fails this by 1e-8 at 37 and 4103."""
    torch.manual_seed(0)
    whole = torch.nn.Parameter(torch.randn(1, size))
    cut = size // 3
    parts = [torch.nn.Parameter(p.clone()) for p in whole.detach().split([cut, size - cut], 1)]
    config = TrainingConfig(learning_rate=0.1, weight_decay=0.1)
    optimizers = [make_optimizer(torch.nn.ParameterList(p), config) for p in ([whole], parts)]
    for _ in range(10):
        whole.grad = torch.randn(1, size)
        for part, grad in zip(parts, whole.grad.split([cut, size - cut], 1), strict=True):
            part.grad = grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(whole, torch.cat([p.detach() for p in parts], 1))
