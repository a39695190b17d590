"""What is kept for backward: by policy, and nothing below the first expanded block."""

from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from controlllm.common.errors import ConfigError
from controlllm.expansion import expand
from controlllm.train import RunConfig, train
from controlllm.train.config.training_config import TrainingConfig
from controlllm.train.setup.activations import enable_checkpointing

POLICIES: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_policy": "selective",
    },
    "full": {"gradient_checkpointing": True},
}


class Kept:
    """A tensor that a graph keeps."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def forward_of(model: Any, tokens: int = 64) -> tuple[torch.Tensor, int]:
    """The loss, and the bytes of all tensors that its graph keeps, parameters apart."""
    alive: WeakSet[Kept] = WeakSet()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> Kept:
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    ids = torch.arange(tokens)[None] % 259
    with saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    storages = [kept.tensor.untyped_storage() for kept in alive]
    return loss, sum(
        {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in own}.values()
    )


def work_of_backward(loss: torch.Tensor) -> tuple[int, int]:
    """FLOPs of its matrix products and attention, and how many operations it has in all."""
    with FlopCounterMode(display=False) as flops, Operations() as operations:
        loss.backward()
    return flops.get_total_flops(), operations.count


class Operations(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def make_model(pico_llama: Any, layers: int, **training: Any) -> Any:
    model = expand(pico_llama(num_hidden_layers=layers), layers=[layers - 1]).train()
    enable_checkpointing(model, TrainingConfig(**training))
    return model


def test_the_policies_compute_again_what_they_say(pico_llama: Any) -> None:
    kept, flops, operations, gradients = {}, {}, {}, {}
    for name, training in POLICIES.items():
        model = make_model(pico_llama, 4, **training)
        loss, kept[name] = forward_of(model)
        flops[name], operations[name] = work_of_backward(loss)
        gradients[name] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    # (What `selective` keeps of products lies beside the graph.)
    assert max(kept["full"], kept["selective"]) < kept["none"]
    assert flops["none"] == flops["selective"] < flops["full"]
    assert operations["none"] < operations["selective"]
    for name in ("selective", "full"):
        assert gradients[name].keys() == gradients["none"].keys()
        for parameter, gradient in gradients[name].items():
            torch.testing.assert_close(gradient, gradients["none"][parameter])


@pytest.mark.parametrize("policy", POLICIES)
def test_frozen_blocks_below_the_first_expanded_one_keep_nothing(
    pico_llama: Any, policy: str
) -> None:
    """Two blocks or six below it: the graph keeps as many bytes, and the input asks for nothing."""
    kept = []
    for layers in (3, 7):
        model = make_model(pico_llama, layers, **POLICIES[policy])
        seen: list[bool] = []
        model.blocks[layers - 1].register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[0].requires_grad)
        )
        kept.append(forward_of(model)[1])
        assert seen == [False]
    assert kept[0] == kept[1]


def test_compiled_blocks_give_the_same_losses(
    run_config: Any, loaded: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced by dynamo and run by its `eager` backend: what the compiler proper does is torch's."""
    compiled: list[str] = []
    own = torch.nn.Module.compile

    def compile_eagerly(module: torch.nn.Module) -> None:
        compiled.append(type(module).__name__)
        own(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    losses = []
    for on in (False, True):
        training = {"torch_compile": on, "max_steps": 3, "output_dir": str(tmp_path / str(on))}
        history = train(run_config(training=training), loaded()).history
        losses.append([row["train/loss"] for row in history if "train/loss" in row])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert compiled == ["LlamaDecoderLayer"] * 6  # Four blocks, two of them with a copy.


def test_a_policy_without_checkpointing_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs training"):
        RunConfig.from_dict({"training": {"gradient_checkpointing_policy": "selective"}})
