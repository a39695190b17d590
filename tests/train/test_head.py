"""The loss with the head applied to a few positions at a time is the loss."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from controlllm.common.errors import ModelError
from controlllm.common.losses import cross_entropy_sum, kl_sum
from controlllm.data import REHEARSAL, TRAIN, Example
from controlllm.data.loader.collate import padded_batch
from controlllm.evaluate import Reference
from controlllm.expansion import expand
from controlllm.train import train
from controlllm.train.step.head import (
    check_head,
    chunked_cross_entropy_sum,
    chunked_kl_sum,
    hidden_states_of,
)
from controlllm.train.step.losses import StepLoss

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "expanded": {"num_blocks": 2},
    "ends": {"num_blocks": 2, "expand_ends": True, "train_alpha": True},
}


def make_model(pico_llama: Any, kind: str, **config: Any) -> Any:
    base = pico_llama(**config)
    return (expand(base, **KINDS[kind]) if KINDS[kind] else base).train()


class LargestTensor(TorchDispatchMode):
    """The most numbers that any result of an operation has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_loss_and_gradients_are_those_of_all_logits(pico_llama: Any, kind: str, chunk: int) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 259, (2, 24))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)
    inputs = {"input_ids": ids, "use_cache": False}
    results = []
    for chunked in (False, True):
        model = make_model(pico_llama, kind)
        if chunked:
            hidden = hidden_states_of(model, inputs)
            assert hidden.shape == (2, 24, 32)
            loss = chunked_cross_entropy_sum(hidden, model, labels, chunk)
        else:
            loss, _ = cross_entropy_sum(model(**inputs).logits, labels)
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((loss, gradients))
        assert model(**inputs).logits.shape == (2, 24, 259)  # The head is back in its place.
    torch.testing.assert_close(results[1][0], results[0][0])
    assert results[1][1].keys() == results[0][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-4, atol=1e-5)


def test_no_tensor_is_as_large_as_all_logits(pico_llama: Any) -> None:
    ids = torch.randint(0, 259, (2, 64))
    model = make_model(pico_llama, "ends")
    with LargestTensor() as largest:
        hidden = hidden_states_of(model, {"input_ids": ids, "use_cache": False})
        chunked_cross_entropy_sum(hidden, model, ids, 16).backward()
    assert largest.numbers < 2 * 64 * 259 / 2


def test_a_base_may_have_fewer_columns_or_forbid_some() -> None:
    torch.manual_seed(0)
    model_ND, base_ND = torch.randn(9, 4, requires_grad=True), torch.randn(9, 4)
    weight_VD, base_UD = torch.randn(7, 4, requires_grad=True), torch.randn(5, 4)
    bias_U = torch.tensor([0.0, 1.0, 0.0, -torch.inf, 0.0])
    targets_N = torch.zeros(9, dtype=torch.long)
    labels_BT = torch.zeros(1, 10, dtype=torch.long)
    logits_BTV = F.pad(model_ND @ weight_VD.T, (0, 0, 0, 1))[None]
    expected, _ = kl_sum(
        F.pad(base_ND @ base_UD.T + bias_U, (0, 0, 0, 1))[None], logits_BTV, labels_BT
    )
    base, model = (base_ND, base_UD, bias_U, targets_N), (model_ND, weight_VD, None, targets_N)
    found = chunked_kl_sum(base, model, 4)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, (model_ND, weight_VD)) for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_rehearsed_rows_have_no_more_logits_at_a_time(pico_llama: Any) -> None:
    model = make_model(pico_llama, "ends")
    tokens = np.arange(64, dtype=np.int32)
    rows = [(Example(tokens, tokens), origin) for origin in (TRAIN, *[REHEARSAL] * 3)]
    batch = padded_batch([[row] for row in rows], 64, 0)
    loss = StepLoss(model, Reference(model), 1.0, chunk=16)
    with LargestTensor() as largest:
        loss.micro_batch(batch, loss.count([batch])).backward()
    assert largest.numbers < 3 * 64 * 259 / 2


def test_a_model_that_caps_its_logits_is_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    settings = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "head_dim": 8}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    for cap in (None, 0.01):
        config = Gemma2Config(**settings, **layers, final_logit_softcapping=cap)
        model = Gemma2ForCausalLM(config)
        if cap is None:
            check_head(model)
        else:
            with pytest.raises(ModelError, match="loss_chunk_size=null"):
                check_head(model)


@pytest.mark.parametrize("method", ["control", "full"])
def test_a_run_in_chunks_is_the_same_run(
    run_config: Any, loaded: Any, tmp_path: Any, method: str
) -> None:
    rehearsal = {"num_sequences": 4, "share": 0.5, "length": 16}
    losses = []
    for chunk in (None, 5):
        # Adam makes a step of what is rounding alone: KL's gradient at the start, of full tuning.
        training = {"loss_chunk_size": chunk, "adam_epsilon": 1e-4}
        training |= {"output_dir": str(tmp_path / str(chunk))}
        run = run_config(method=method, training=training, rehearsal=rehearsal)
        history = train(run, loaded()).history
        names = ("train/loss", "train/rehearsal", "train/grad_norm", "retain/old/loss")
        losses.append([row[name] for row in history for name in names if name in row])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_rounds_logits_but_not_their_sum(pico_llama: Any, kind: str) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 259, (2, 24))
    inputs = {"input_ids": ids, "use_cache": False}
    results = []
    for chunk in (None, 7):
        model = make_model(pico_llama, kind)
        with torch.autocast("cpu", torch.bfloat16):
            if chunk is None:
                loss, _ = cross_entropy_sum(model(**inputs).logits, ids)
            else:
                hidden = hidden_states_of(model, inputs)
                loss = chunked_cross_entropy_sum(hidden, model, ids, chunk)
        assert loss.dtype == torch.float32
        (loss / 46).backward()
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=0)
    for name, gradient in results[0][1].items():
        if gradient is not None:
            scale = gradient.abs().max().item()
            torch.testing.assert_close(results[1][1][name], gradient, rtol=0, atol=0.02 * scale)
