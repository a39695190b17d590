"""AdamW with moments in 8 or 4 bits, on tensors that are large enough for it."""

import copy
import sys

import pytest
import torch

from controlllm.checkpoint import load_checkpoint, newest_checkpoint
from controlllm.checkpoint.training.optimizer import (
    make_optimizer_state,
    optimizer_state,
    restore_optimizer,
)
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.storage.files import save_tensors
from controlllm.train import TrainingConfig, train
from controlllm.train.config.optimizers import LOW_BIT, block_size
from controlllm.train.step.optim import make_optimizer, make_scheduler

BYTES = {"adamw_8bit": 1 + 4 / 256, "adamw_fp8": 1 + 4 / 256, "adamw_4bit": 0.5 + 4 / 128}
"""A number of a moment: its codes, and its share of a scale."""

pytest.importorskip("torchao")


@pytest.fixture
def wide(pico_llama, pico_tokenizer):
    """`wide()`: a fresh model whose matrices are just large enough, and its tokenizer."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 4}
    return lambda: (pico_llama(**sizes), copy.deepcopy(pico_tokenizer))


def trained(name, steps, width=256, **config):
    """A linear layer after some steps on gradients that every optimizer sees alike."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(width, 64)
    settings = TrainingConfig(optim=name, learning_rate=1e-2, warmup_steps=2, **config)
    optimizer = make_optimizer(layer, settings)
    scheduler = make_scheduler(optimizer, settings, 20)
    continue_training(layer, optimizer, scheduler, range(steps))
    return layer, optimizer, scheduler


def continue_training(layer, optimizer, scheduler, steps):
    for step in steps:
        random = torch.Generator().manual_seed(step)
        for parameter in layer.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", LOW_BIT)
def test_updates_are_near_those_of_adamw_and_the_bias_takes_the_same_ones(name):
    exact, _, _ = trained("adamw", 10, weight_decay_ratio=5.0)
    near, _, _ = trained(name, 10, weight_decay_ratio=5.0)
    start, _, _ = trained("adamw", 0)
    moved = (exact.weight - start.weight).norm()
    error = (near.weight - exact.weight).norm() / moved
    assert 0 < error < {"adamw_8bit": 0.02, "adamw_fp8": 0.05, "adamw_4bit": 0.3}[name]
    torch.testing.assert_close(near.bias, exact.bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOW_BIT)
def test_bytes_of_the_state(name):
    """64 rows of 256: two moments of 16,384 numbers; the bias's 64 stay float32."""

    def size(name):
        layer, optimizer, _ = trained(name, 1)
        tensors, _ = optimizer_state(layer, optimizer)
        return {
            key.removeprefix("optimizer/").split("/")[0]: sum(
                tensor.nbytes for other, tensor in tensors.items() if other.startswith(prefix)
            )
            for key in tensors
            for prefix in [key[: key.index("/", len("optimizer/")) + 1]]
        }

    step = 4
    assert size("adamw") == {"weight": 2 * 4 * 16_384 + step, "bias": 2 * 4 * 64 + step}
    assert size(name) == {"weight": 2 * BYTES[name] * 16_384 + step, "bias": 2 * 4 * 64 + step}


@pytest.mark.parametrize("name", LOW_BIT)
def test_the_worst_case_holds_as_much_as_the_state_will_take(name):
    """What `worst_case_first` sets aside before the first step: no more than the moments are."""
    layer, optimizer, _ = trained(name, 0)
    moment = optimizer.moment_like(layer.weight)
    assert moment.codes.nbytes + moment.scale.nbytes == BYTES[name] * 16_384
    assert optimizer.moment_like(layer.bias).nbytes == 4 * 64
    assert not optimizer.state


def test_which_tensors_and_which_blocks():
    def block(*shape):
        return block_size(torch.Size(shape), 256)

    assert block(64, 256) == 256
    assert block(4864, 896) == 128  # 3.5 blocks of 256: seven of 128
    assert block(64, 96) == 32
    assert block(64, 80) is None  # Only 16 divides it.
    assert block(15, 256) is None and block(16, 256) == 256  # 3,840 and 4,096 values
    assert block(8192) is None  # a norm
    assert block(8, 64, 32) == 256  # stacked experts: a row is an expert


@pytest.mark.parametrize("name", LOW_BIT)
@pytest.mark.parametrize("decay", [{}, {"weight_decay_ratio": 5.0}])
def test_saved_and_restored_it_goes_on_exactly(name, decay, tmp_path):
    from safetensors.torch import load_file

    straight, _, _ = trained(name, 8, **decay)
    layer, optimizer, scheduler = trained(name, 4, **decay)
    tensors, rest = optimizer_state(layer, optimizer)
    assert "optimizer/weight/exp_avg/codes" in tensors
    save_tensors(tmp_path / "optimizer.safetensors", tensors)
    saved = load_file(tmp_path / "optimizer.safetensors")

    again, fresh, schedule = trained(name, 0, **decay)
    again.load_state_dict(layer.state_dict())
    make_optimizer_state(fresh)
    targets, _ = optimizer_state(again, fresh)
    for key, tensor in targets.items():
        tensor.copy_(saved[key])
    restore_optimizer(again, fresh, set(saved), rest)
    schedule.load_state_dict(scheduler.state_dict())
    continue_training(again, fresh, schedule, range(4, 8))
    for parameter, expected in zip(again.parameters(), straight.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_a_parameter_without_gradients_has_no_state_after_a_resume():
    layer, optimizer, _ = trained("adamw_8bit", 0)
    make_optimizer_state(optimizer)
    restore_optimizer(
        layer,
        optimizer,
        {"optimizer/weight/exp_avg/codes"},
        {"groups": [{} for _ in optimizer.param_groups], "values": {}},
    )
    assert set(optimizer.state) == {layer.weight}


def test_interpolators_are_not_quantised(pico_llama):
    from controlllm.expansion import ExpansionConfig, expand

    model = expand(pico_llama(hidden_size=64), ExpansionConfig(num_blocks=2, interpolator="proj"))
    optimizer = make_optimizer(model, TrainingConfig(optim="adamw_8bit"))
    make_optimizer_state(optimizer)
    names = {name for name in optimizer_state(model, optimizer)[0] if name.endswith("codes")}
    assert any(".expanded." in name for name in names)
    projection = next(n for n, _ in model.named_parameters() if n.endswith("projection"))
    assert model.get_parameter(projection).numel() >= 4096
    assert not any("interpolator" in name for name in names)


def test_without_the_package_a_run_is_refused_before_anything_is_loaded(monkeypatch, run_config):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchao"]:
        monkeypatch.setitem(sys.modules, name, None)
    run = run_config(
        training={"optim": "adamw_8bit"}, model={"model_name_or_path": "no/such/model"}
    )
    with pytest.raises(ConfigError, match=r"optim=adamw_8bit needs torchao.*pip install"):
        train(run)
    with pytest.raises(ConfigError, match="adamw_8bit"):
        TrainingConfig(optim="adam_8bit")


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "native") for name in LOW_BIT), ("adamw_4bit", "hf")]
)
def test_a_run_resumes_exactly(name, backend, run_config, wide, tmp_path):
    def run(folder, **over):
        training = {"output_dir": str(tmp_path / folder), "eval_steps": 100, "optim": name}
        return train(run_config(training={**training, "backend": backend, **over}), wide())

    run("straight")
    run("resumed", max_tokens=2 * 4 * 32 - 100)
    assert newest_checkpoint(tmp_path / "resumed").name == "checkpoint-2"
    run("resumed")
    straight, resumed = (
        load_checkpoint(newest_checkpoint(tmp_path / one)) for one in ("straight", "resumed")
    )
    codes = [key for key in straight.optimizer_tensors if key.endswith("/codes")]
    assert len(codes) == 2 * 2 * 7  # moments, blocks, matrices
    for kind in ("tensors", "optimizer_tensors"):
        for key, tensor in getattr(straight, kind).items():
            assert torch.equal(tensor, getattr(resumed, kind)[key]), key


def test_a_checkpoint_of_another_optimizer_is_refused(run_config, wide, tmp_path):
    def run(name, folder, **over):
        training = {"output_dir": str(tmp_path / folder), "optim": name, "eval_steps": 100}
        return train(run_config(training={**training, "max_steps": 2, **over}), wide())

    for name in ("adamw", "adamw_8bit"):
        run(name, name)
    for one, other in (("adamw", "adamw_8bit"), ("adamw_8bit", "adamw")):
        checkpoint = str(tmp_path / other / "checkpoint-2")
        with (
            pytest.warns(UserWarning, match="training.optim"),
            pytest.raises(CheckpointError, match=r"left over optimizer/.*as it was when"),
        ):
            run(one, f"{one} from {other}", resume_from_checkpoint=checkpoint)
