"""How blocks are cut, and what cannot be."""

import pytest
from transformers import GPT2Config, LlamaConfig, Qwen3Config

from controlllm.common.errors import ConfigError
from controlllm.train.config.parallel_config import ParallelConfig
from controlllm.train.parallel import MeshPlan, plan_mesh
from controlllm.train.parallel.tensor import block_plan


def test_the_plan_of_a_block_is_the_models_own() -> None:
    plan = block_plan(LlamaConfig(), 4)
    assert plan["self_attn.q_proj"] == plan["mlp.up_proj"] == "colwise"
    assert plan["self_attn.o_proj"] == plan["mlp.down_proj"] == "rowwise"
    assert len(plan) == 7


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GPT2Config(), "gpt2 has no plan"),
        (LlamaConfig(num_attention_heads=8, num_key_value_heads=1), "num_key_value_heads=1"),
        (Qwen3Config(), "asks for replicated"),
    ],
)
def test_what_cannot_be_cut_is_refused(config: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        block_plan(config, 2)


@pytest.mark.parametrize(
    ("config", "plan"),
    [
        (ParallelConfig("fsdp", tensor_size=2), MeshPlan(1, 4, 2)),
        (ParallelConfig("ddp", tensor_size=4), MeshPlan(2, 1, 4)),
        (ParallelConfig("hsdp", tensor_size=2), MeshPlan(2, 2, 2)),
        (ParallelConfig("hsdp", tensor_size=2, shard_size=1), MeshPlan(4, 1, 2)),
    ],
)
def test_meshes_with_tensor_groups(config: ParallelConfig, plan: MeshPlan) -> None:
    assert plan_mesh(config, 8, 4) == plan
    assert plan.world_size == 8
