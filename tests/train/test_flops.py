"""FLOPs as counted from the model, against those that torch counts while it computes."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
)

from controlllm.common.errors import ConfigError
from controlllm.expansion import expand
from controlllm.train.observe.flops import FlopCount, Flops, Part, sequence_lengths
from controlllm.train.observe.model_parts import parts_of
from controlllm.train.observe.peaks import measured_peak, peak_of_name, required_peak

ROWS, LENGTH = 2, 16


@pytest.fixture(scope="module")
def eager(pico_llama: Any) -> Callable[..., nn.Module]:
    """A pico model with eager attention: torch counts no fused kernel of a CPU."""
    return lambda **settings: pico_llama(attn_implementation="eager", **settings)


def computed(model: nn.Module) -> Flops:
    """What torch counts in a forward and a backward pass."""
    ids = torch.ones(ROWS, LENGTH, dtype=torch.long)
    model.train()
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, use_cache=False).logits.square().sum()
        forward = counter.get_total_flops()
        loss.backward()
    return Flops(forward, counter.get_total_flops() - forward)


def counted(model: nn.Module) -> Flops:
    return FlopCount(parts_of(model)).of(torch.full((ROWS,), LENGTH))


SETTINGS = [
    {"structure": "concat", "num_blocks": 2},
    {"structure": "stack", "num_blocks": 2},
    {"structure": "hybrid", "layers": [1, 2]},
    {"structure": "concat", "num_blocks": 2, "expand_ends": True},
    {"structure": "stack", "num_blocks": 2, "expand_ends": True},
    {"structure": "concat", "layers": [3]},
    {"structure": "concat", "layers": [0, 3], "freeze": ["blocks", "norm"]},
    {"structure": "concat", "num_blocks": 2, "interpolator": "prog"},
    {"structure": "concat", "num_blocks": 2, "interpolator": "dlerpin", "expand_ends": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_control_is_counted_as_torch_counts(eager: Any, settings: Any, tied: bool) -> None:
    model = expand(eager(tie_word_embeddings=tied), **settings)
    assert counted(model) == computed(model)


def test_full_is_counted_as_torch_counts(eager: Any) -> None:
    model = eager()
    assert counted(model) == computed(model)


def test_a_frozen_model_has_no_backward_pass(eager: Any) -> None:
    model = eager().requires_grad_(False)
    assert counted(model).backward == 0 < counted(model).forward


def test_blocks_below_the_first_expanded_one_have_no_backward_pass(eager: Any) -> None:
    low, high = (parts_of(expand(eager(), layers=[layer])) for layer in (0, 3))
    backward = {part.name: part.per_token().backward for part in high}
    assert [backward[f"layer {i}"] for i in range(3)] == [0, 0, 0]
    assert backward["layer 3 pretrained"] == 0 < backward["layer 3 expanded"]
    above = {part.name: part for part in low}["layer 1"]
    assert above.per_token().backward == above.per_token().forward  # of its input only


def test_a_trained_head_over_a_frozen_body_gives_no_gradient_below(eager: Any) -> None:
    model = eager().requires_grad_(False)
    model.get_output_embeddings().requires_grad_(True)
    assert counted(model) == computed(model)


def test_activation_checkpointing_computes_blocks_again(eager: Any) -> None:
    from controlllm.train.config.training_config import TrainingConfig
    from controlllm.train.setup.model import tune_model

    model = expand(eager(), num_blocks=2)
    plain = counted(model)
    tune_model(model, TrainingConfig(gradient_checkpointing=True))
    again, torchs = counted(model), computed(model)
    assert (again.forward, again.backward) == (plain.forward, plain.backward)
    # Each of four branches stops before its last matrix, which the module's docstring says.
    last = 4 * 2 * ROWS * LENGTH * 48 * 32
    assert again.hardware - last == torchs.model
    assert again.model == plain.hardware


def test_selective_checkpointing_keeps_results_of_matrices(eager: Any) -> None:
    from controlllm.train.config.training_config import TrainingConfig
    from controlllm.train.setup.model import tune_model

    model = expand(eager(), num_blocks=2)
    policy = TrainingConfig(gradient_checkpointing=True, gradient_checkpointing_policy="selective")
    tune_model(model, policy)
    assert counted(model) == computed(model)


def test_fused_attention_computes_scores_again(pico_llama: Any, eager: Any) -> None:
    fused, plain = counted(pico_llama()), counted(eager())
    assert fused.model == plain.model
    assert fused.extra == 4 * ROWS * LENGTH**2 * 2 * 32  # layers, pairs, multiply-add, width


def test_attention_stays_within_documents_and_windows() -> None:
    count = FlopCount([Part("a", 0, 0, keys=3, values=5), Part("b", 0, 0, keys=1, window=4)])
    lengths = sequence_lengths({"cu_seq_lens_q": torch.tensor([0, 3, 10], dtype=torch.int32)})
    assert count.of(lengths).forward == 2 * 8 * (3 * 3 + 7 * 7) + 2 * (3 * 3 + 7 * 4)


def test_experts_count_as_many_as_a_token_meets() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=7,
    )
    with torch.device("meta"):
        block = parts_of(MixtralForCausalLM(config))[0]
    attention, router, expert = 2 * 32 * 32 + 2 * 32 * 16, 8 * 32, 3 * 32 * 48
    assert block.matrices == attention + router + 2 * expert
    assert block.window == 7


def test_peaks_are_found_by_the_names_that_drivers_give() -> None:
    names = {
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA H100 80GB HBM3": 989.4,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H100 NVL": 835.5,
        "NVIDIA H200": 989.4,
        "NVIDIA B200": 2250,
        "NVIDIA L40S": 362,
        "AMD Instinct MI300X OAM": 1307.4,
    }
    assert {name: peak_of_name(name) for name in names} == {n: t * 1e12 for n, t in names.items()}
    assert peak_of_name("NVIDIA GB200") is None  # faster than a B200: it is measured
    with pytest.raises(ConfigError, match="H100 PCIe"):
        required_peak("H1000")


def test_a_peak_is_measured_once() -> None:
    cpu = torch.device("cpu")
    assert measured_peak(cpu, torch.float32) == measured_peak(cpu, torch.float32) > 1e8


def test_of_a_base_for_text_and_images_the_text_is_counted():
    text = Gemma3TextConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    alone = Gemma3ForCausalLM(deepcopy(text))
    images = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    images |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    both = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=images))
    parts = [parts_of(expand(model, num_blocks=2)) for model in (alone, both)]
    assert parts[0] == parts[1]
