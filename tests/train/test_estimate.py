"""What a plan says, against what a run really takes."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.processes import run_ranks, values
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from controlllm.checkpoint import newest_checkpoint
from controlllm.common.packages.bitsandbytes import stored_bytes
from controlllm.expansion import expand
from controlllm.expansion.surgery.quantised import quantised_layers
from controlllm.train import RunConfig, train
from controlllm.train.config.methods import METHODS
from controlllm.train.observe.flops import FlopCount
from controlllm.train.observe.model_parts import parts_of
from controlllm.train.parallel.mesh import MeshPlan
from controlllm.train.plan.activation_bytes import activation_bytes
from controlllm.train.plan.estimate import estimate, model_without_weights
from controlllm.train.setup.ready import set_up

ALONE = MeshPlan(1, 1)
EXPANSIONS = [
    {"num_blocks": 2},
    {"num_blocks": 2, "structure": "stack"},
    {"num_blocks": 1, "expand_ends": True, "interpolator": "dlerp"},
    {"num_blocks": 1, "freeze": ["blocks"], "train_alpha": True},
]


def bytes_of(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def held(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def made_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What a quantised tensor consists of; any other consists of itself."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
    return [getattr(tensor, name) for name in names] or [tensor]


def taken(ready: Any) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state after a step, on this process."""
    counts = ready.loss.count(batches := ready.next_batches()).over(ready.world)
    for batch in batches:
        ready.loss.micro_batch(batch, counts).backward()
    ready.optimizer.step()
    parameters = list(ready.model.parameters())
    state = [t for s in ready.optimizer.state.values() for t in map(held, s.values())]
    sizes = {
        "frozen": bytes_of(held(p) for p in parameters if not p.requires_grad),
        "trained": bytes_of(held(p) for p in parameters if p.requires_grad),
        "gradients": bytes_of(held(p.grad) for p in parameters if p.grad is not None),
        "optimizer": bytes_of(part for t in state for part in made_of(t)),
    }
    ready.loader.close()
    return sizes


def planned(run: RunConfig, config: Any, mesh: MeshPlan) -> dict[str, int]:
    expansion = run.expansion if METHODS.get(run.method).expands else None
    memory = estimate(run, config, expansion, mesh).memory
    return {n: getattr(memory, n) for n in ("frozen", "trained", "gradients", "optimizer")}


WAYS: list[dict[str, Any]] = [
    {"method": "lora"},
    {"method": "lora", "peft": {"type": "dora", "r": 2, "target_modules": ["q_proj"]}},
    {"method": "lora", "peft": {"type": "oft", "block_size": 8, "layers": [1, 2]}},
    {"method": "freeze", "freeze": {"layers": [1], "also_train": ["head"]}},
    {"method": "kl"},
    {"method": "stack"},
    {"peft": {"type": "lora"}},
]


@pytest.mark.parametrize("over", WAYS, ids=str)
def test_memory_of_every_method_is_exact(run_config: Any, loaded: Any, over: Any) -> None:
    """Of a copy of the base, what is not common to both counts among what is frozen."""
    run = run_config(**over)
    model, tokenizer = loaded()
    plan = planned(run, model.config, ALONE)
    ready = set_up(run, (model, tokenizer))
    copied = ready.reference.copy
    sizes = taken(ready)
    own = {p.data_ptr() for p in ready.model.parameters()}
    if copied is not None:
        sizes["frozen"] += bytes_of(p for p in copied.parameters() if p.data_ptr() not in own)
    assert plan == sizes


@pytest.mark.parametrize("expansion", EXPANSIONS, ids=str)
def test_memory_of_one_process_is_exact(
    run_config: Any, loaded: Any, expansion: dict[str, Any]
) -> None:
    run = run_config(expansion=expansion)
    model, tokenizer = loaded()
    plan = planned(run, model.config, ALONE)
    assert plan == taken(set_up(run, (model, tokenizer)))


LOW_BIT = ["adamw_8bit", "adamw_4bit", "adamw_fp8"]


@pytest.fixture
def wide(pico_llama: Any, pico_tokenizer: Any) -> Any:
    """`wide()`: a model with matrices that are worth quantising."""
    return lambda: (
        pico_llama(hidden_size=64, intermediate_size=128),
        copy.deepcopy(pico_tokenizer),
    )


@pytest.mark.parametrize("optimizer", LOW_BIT)
@pytest.mark.parametrize("ranks", [1, 2])
def test_moments_in_few_bits_are_exact(
    run_config: Any, wide: Any, tmp_path: Path, optimizer: str, ranks: int
) -> None:
    pytest.importorskip("torchao")
    run = run_config(
        training={"optim": optimizer}, expansion={"num_blocks": 1, "interpolator": "prog"}
    )
    plan = planned(run, wide()[0].config, MeshPlan(1, ranks))
    assert plan["optimizer"] < plan["trained"]

    def work(rank: int) -> dict[str, int]:
        from controlllm.train.parallel import open_world

        with open_world(run.parallel, "cpu") as world:
            return taken(set_up(run, wide(), world))

    found = values(run_ranks(work, ranks, tmp_path / "ranks"))[0]
    assert found == plan


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_is_exact(run_config: Any, wide: Any, pico_llama: Any, kind: str) -> None:
    pytest.importorskip("torchao")
    run = run_config(model={"quantize_base": kind}, expansion={"num_blocks": 2})
    model, tokenizer = wide()
    plan = planned(run, model.config, ALONE)
    whole = planned(run_config(expansion={"num_blocks": 2}), model.config, ALONE)
    assert plan["frozen"] < whole["frozen"]
    assert plan == taken(set_up(run, (model, tokenizer)))


@pytest.mark.parametrize("kind", ["bnb_int8", "bnb_nf4", "bnb_nf4_double"])
def test_a_base_quantised_by_bitsandbytes_counts_with_its_scales(
    run_config: Any, wide: Any, kind: str
) -> None:
    pytest.importorskip("bitsandbytes")
    run = run_config(model={"quantize_base": kind}, expansion={"num_blocks": 2})
    model, tokenizer = wide()
    plan = planned(run, model.config, ALONE)
    ready = set_up(run, (model, tokenizer))
    layers = [layer for _, layer in quantised_layers(ready.model)]
    codes = bytes_of(layer.weight for layer in layers)
    found = taken(ready)
    assert plan == found | {"frozen": found["frozen"] - codes + sum(map(stored_bytes, layers))}


@pytest.mark.parametrize("asked", [True, False])
def test_full_keeps_its_base_where_something_asks_it(
    run_config: Any, loaded: Any, asked: bool
) -> None:
    run = run_config(method="full")
    if not asked:
        run.data.learn = run.data.retain = []
    model, tokenizer = loaded()
    plan = planned(run, model.config, ALONE)
    ready = set_up(run, (model, tokenizer))
    copied = [p for ref in [ready.loss.reference] if ref for p in ref.copy.parameters()]
    assert plan == taken(ready) | {"frozen": bytes_of(copied)}


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_memory_of_the_first_of_several_processes_is_exact(
    run_config: Any, loaded: Any, tmp_path: Path, strategy: str
) -> None:
    run = run_config(
        expansion={"num_blocks": 2, "expand_ends": True}, parallel={"strategy": strategy}
    )
    mesh = MeshPlan(1, 2) if strategy == "fsdp" else MeshPlan(2, 1)
    plan = planned(run, loaded()[0].config, mesh)

    def work(rank: int) -> dict[str, int]:
        from controlllm.train.parallel import open_world

        with open_world(run.parallel, "cpu") as world:
            return taken(set_up(run, loaded(), world))

    assert values(run_ranks(work, 2, tmp_path / "ranks"))[0] == plan


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_4bit"])
@pytest.mark.parametrize("method", ["control", "full"])
def test_checkpoints_are_as_large_as_planned(
    run_config: Any, wide: Any, tmp_path: Path, method: str, optimizer: str
) -> None:
    if optimizer != "adamw":
        pytest.importorskip("torchao")
    run = run_config(
        method=method,
        expansion={"num_blocks": 1, "expand_ends": True},
        training={"optim": optimizer},
    )
    model, tokenizer = wide()
    expansion = run.expansion if method == "control" else None
    plan = estimate(run, model.config, expansion, ALONE).checkpoint
    train(run, (model, tokenizer))
    folder = newest_checkpoint(tmp_path / "run")
    assert folder is not None
    names = ("optimizer.safetensors", "sidecar.safetensors", "model.safetensors")
    files = [folder / name for name in names if (folder / name).exists()]
    assert sum(_data_bytes(file) for file in files) == plan
    assert plan < sum(file.stat().st_size for file in files) < plan + 40_000  # headers


def _data_bytes(file: Path) -> int:
    """Bytes of a safetensors file without its header."""
    with file.open("rb") as opened:
        return file.stat().st_size - 8 - int.from_bytes(opened.read(8), "little")


def _kept(model: nn.Module, rows: int, length: int) -> int:
    """What autograd keeps, as the real model runs."""
    seen = {w.untyped_storage().data_ptr() for w in [*model.parameters(), *model.buffers()]}
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in seen:
            seen.add(tensor.untyped_storage().data_ptr())
            kept.append(tensor)
        return tensor

    ids = torch.ones(rows, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    model.train()
    with saved_tensors_hooks(pack, lambda t: t), model.explicit_divergence() as terms:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
        if terms.values:
            terms.total(mask.bool())
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


@pytest.mark.parametrize("settings", [{}, {"structure": "stack"}, {"layers": [0, 3]}], ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_activations_are_those_that_autograd_keeps(
    pico_llama: Any, settings: dict[str, Any], attention: str
) -> None:
    settings = {"num_blocks": 2, **settings}
    real = expand(pico_llama(attn_implementation=attention), **settings)
    run = RunConfig.from_dict({"expansion": settings, "model": {"attn_implementation": attention}})
    config = pico_llama().config
    bare = model_without_weights(run, config, run.expansion)
    assert activation_bytes(bare, 2, 16) == _kept(real, 2, 16)


def test_checkpointing_keeps_less_and_a_frozen_start_nothing(pico_llama: Any) -> None:
    def kept(expansion: dict[str, Any], **training: Any) -> int:
        run = RunConfig.from_dict({"expansion": expansion, "training": training})
        config = pico_llama().config
        return estimate(run, config, run.expansion, ALONE).memory.activations

    high, low = kept({"layers": [3]}), kept({"layers": [0]})
    assert high < low / 2
    full = kept({"layers": [0]}, gradient_checkpointing=True)
    policy = {"gradient_checkpointing": True, "gradient_checkpointing_policy": "selective"}
    assert full < kept({"layers": [0]}, **policy) < low


@pytest.mark.parametrize("chunk", [None, 16])
def test_logits_of_the_base_count_where_rows_are_rehearsed(
    run_config: Any, pico_llama: Any, chunk: int | None
) -> None:
    sizes = []
    for loss in ("ce", "kl"):
        rehearsal = {"num_sequences": 4, "loss": loss}
        run = run_config(rehearsal=rehearsal, training={"loss_chunk_size": chunk})
        memory = estimate(run, pico_llama().config, run.expansion, ALONE).memory
        sizes.append(memory.logits / (chunk or 2 * 32) / 259 / 8)
    assert sizes == [2, 3]


def test_numbers_are_those_of_the_model(pico_llama: Any) -> None:
    run = RunConfig.from_dict(
        {
            "expansion": {"num_blocks": 2},
            "data": {"max_length": 16},
            "training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
        }
    )
    real = expand(pico_llama(), num_blocks=2)
    plan = estimate(run, pico_llama().config, run.expansion, MeshPlan(1, 4))
    assert plan.parameters == sum(p.numel() for p in real.parameters())
    assert plan.trained == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert plan.tokens == 4 * 3 * 2 * 16
    assert plan.flops == FlopCount(parts_of(real)).of(torch.full((4 * 3 * 2,), 16))
    json.dumps(vars(plan.memory))
