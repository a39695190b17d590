"""The largest batch first: it is the largest, it leaves no trace, and too large is told."""

import copy
import random
import resource
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from controlllm.common.errors import TrainingError
from controlllm.data import DataConfig
from controlllm.data.loader.collate import padded_width
from controlllm.train.loops.native import clip_gradients
from controlllm.train.plan.worst_case import run_worst_case, worst_shapes
from controlllm.train.setup.ready import set_up

KINDS: dict[str, dict[str, Any]] = {
    "packed": {},
    "concat": {"packing_strategy": "concat"},
    "padded": {"packing": False},
    "grouped": {"packing": False, "group_by_length": True},
    "budget": {"packing": False, "max_tokens_per_batch": 100},
}


def step(ready: Any) -> float:
    """One optimizer step as the native loop makes it."""
    batches = ready.next_batches()
    counts = ready.loss.count(batches)
    total = 0.0
    with ready.alphas.step():
        for batch in batches:
            loss = ready.loss.micro_batch(ready.to_device(batch), counts)
            loss.backward()
            total += loss.item()
    clip_gradients(ready.model, 1.0)
    ready.optimizer.step()
    ready.scheduler.step()
    ready.optimizer.zero_grad(set_to_none=True)
    return total


def weights(ready: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in ready.model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same_bit_for_bit(run_config, loaded, kind):
    """With dropout, alpha sampling and rehearsal, so that every random state would show."""
    run = run_config(
        data=KINDS[kind],
        training={"alpha_sampling": [0.2, 0.8]},
        rehearsal={"share": 0.25, "num_sequences": 4, "length": 16, "loss": "kl"},
    )
    results = []
    for first in (False, True):
        model, tokenizer = loaded()
        model.config.attention_dropout = 0.3
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.3
        ready = set_up(run, (model, tokenizer))
        ready.model.train()
        before = weights(ready)
        if first:
            run_worst_case(ready)
            assert all(p.grad is None for p in ready.model.parameters())
            assert not ready.optimizer.state
            assert all(torch.equal(v, before[k]) for k, v in weights(ready).items())
        losses = [step(ready) for _ in range(3)]
        draws = (random.random(), np.random.random(), torch.rand(()).item())
        results.append((losses, draws, weights(ready)))
    assert results[0][:2] == results[1][:2]
    for name, tensor in results[0][2].items():
        assert torch.equal(tensor, results[1][2][name]), name


def test_it_can_run_again_in_the_middle_of_a_run(run_config, loaded):
    """The optimizer's state, there by now, stays as it is; so does the model's mode."""
    ready = set_up(run_config(), loaded())
    ready.model.eval()
    step(ready)
    before, state = weights(ready), copy.deepcopy(ready.optimizer.state_dict())
    run_worst_case(ready)
    assert all(torch.equal(v, before[k]) for k, v in weights(ready).items())
    assert not any(module.training for module in ready.model.modules())
    after = ready.optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"]
    for number, values in state["state"].items():
        assert all(torch.equal(v, after["state"][number][k]) for k, v in values.items())


def test_rotary_embeddings_that_grow_are_as_before(run_config, pico_tokenizer):
    """Dynamic NTK stretches its frequencies at the first long row, and remembers the length."""
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        pad_token_id=0,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )
    run = run_config(data={"packing": False}, expansion={"num_blocks": 1})
    ready = set_up(run, (LlamaForCausalLM(config), copy.deepcopy(pico_tokenizer)))
    rotary = [m for m in ready.model.modules() if hasattr(m, "max_seq_len_cached")]
    before = [(m.max_seq_len_cached, m.inv_freq.clone()) for m in rotary]
    stretched = []
    hooks = [
        m.register_forward_hook(lambda m, *_: stretched.append(m.max_seq_len_cached))
        for m in rotary
    ]
    run_worst_case(ready)
    for hook in hooks:
        hook.remove()
    assert max(stretched) == 32
    assert rotary
    for module, (length, frequencies) in zip(rotary, before, strict=True):
        assert module.max_seq_len_cached == length
        assert torch.equal(module.inv_freq, frequencies)


def test_buffers_that_count_are_as_before(run_config, loaded):
    """As routers that balance their experts keep counts, changed in place by each forward."""
    ready = set_up(run_config(), loaded())
    head = ready.model.get_output_embeddings()
    head.register_buffer("seen", torch.zeros((), dtype=torch.int64))
    most = []

    def count(module: Any, *_: Any) -> None:
        module.seen += 1
        most.append(int(module.seen))

    head.register_forward_hook(count)
    run_worst_case(ready)
    assert most == [1, 2]
    assert head.seen == 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_batch_of_the_run_is_larger(run_config, loaded, kind, monkeypatch):
    """What the passes saw against 40 batches of the loader."""
    ready = set_up(run_config(data=KINDS[kind]), loaded())
    seen = []
    plain = type(ready.loss).micro_batch
    monkeypatch.setattr(
        type(ready.loss),
        "micro_batch",
        lambda self, batch, *rest: seen.append(batch) or plain(self, batch, *rest),
    )
    run_worst_case(ready)
    worst_tokens = max(batch["input_ids"].numel() for batch in seen)
    worst_attention = max(attention_cost(batch) for batch in seen)
    assert all((batch["labels"][batch["origin"] >= 0] != -100).sum() > 0 for batch in seen)
    for _ in range(40):
        batch = next(ready.loader)
        assert batch["input_ids"].numel() <= worst_tokens
        assert attention_cost(batch) <= worst_attention


def attention_cost(batch: Any) -> int:
    """Pairs of tokens that eager attention makes scores for."""
    if "cu_seq_lens_q" in batch:
        return int((batch["cu_seq_lens_q"].diff().long() ** 2).sum())
    rows, width = batch["input_ids"].shape
    return rows * width**2


@given(length=st.integers(3, 200), factor=st.floats(1, 20), data=st.data())
def test_shapes_of_a_budget_dominate_all_others(length: int, factor: float, data: Any) -> None:
    """Any batch within the budget has no more tokens, rows, or pairs of tokens."""
    budget = int(length * factor)
    config = DataConfig(packing=False, max_length=length, max_tokens_per_batch=budget)
    shapes = worst_shapes(config, 4)
    assert all(rows * width <= budget for rows, width in shapes)
    width = padded_width(data.draw(st.integers(2, length)), length)
    rows = budget // width
    assert rows * width <= max(r * w for r, w in shapes)
    assert rows <= max(r for r, _ in shapes)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """This process may take 1 GiB more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_too_large_a_batch_is_told_with_what_to_lower(run_config, loaded, little_memory):
    """A real allocation fails: 100,000 rows of 32 tokens have 3.3 GB of logits."""
    training = {"per_device_train_batch_size": 100_000}
    ready = set_up(run_config(data={"packing": False}, training=training), loaded())
    before = weights(ready)
    with pytest.raises(TrainingError) as caught:
        run_worst_case(ready)
    text = str(caught.value)
    assert "100,000 rows of 32 tokens" in text
    assert "training.per_device_train_batch_size (now 100,000)" in text
    assert "data.max_length (now 32)" in text
    assert all(torch.equal(v, before[k]) for k, v in weights(ready).items())
    assert all(p.grad is None for p in ready.model.parameters())


def test_other_errors_are_not_called_memory(run_config, loaded):
    ready = set_up(run_config(), loaded())
    with torch.no_grad():
        ready.model.get_input_embeddings().weight.set_(torch.zeros(3, 32))
    with pytest.raises(IndexError):
        run_worst_case(ready)
