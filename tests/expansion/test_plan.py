import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlllm import ExpansionConfig
from controlllm.common.errors import ConfigError
from controlllm.expansion.method.plan import BlockPlan, default_layers, extended_lists, plan_blocks


@pytest.mark.parametrize(
    "num_layers, num_blocks, layers",
    [
        (32, 8, [3, 7, 11, 15, 19, 23, 27, 31]),
        (32, 16, list(range(1, 32, 2))),
        (32, 32, list(range(32))),
        (5, 5, [0, 1, 2, 3, 4]),
        (5, 2, [1, 3]),
        (7, 3, [1, 3, 5]),
        (7, 4, [0, 1, 2, 3]),
        (1, 1, [0]),
    ],
)
def test_default_positions(num_layers, num_blocks, layers):
    assert default_layers(num_layers, num_blocks) == layers


@given(st.integers(1, 100).flatmap(lambda L: st.tuples(st.just(L), st.integers(1, L))))
def test_default_positions_are_as_many_as_asked_ascending_and_inside(case):
    num_layers, num_blocks = case
    layers = default_layers(num_layers, num_blocks)
    assert len(layers) == num_blocks
    assert layers == sorted(set(layers))
    assert layers[0] >= 0 and layers[-1] < num_layers


def test_a_quarter_of_the_layers_by_default():
    assert [block.layer for block in plan_blocks(ExpansionConfig(), 32)] == default_layers(32, 8)
    assert len(plan_blocks(ExpansionConfig(), 3)) == 1
    assert len(plan_blocks(ExpansionConfig(structure="hybrid"), 12)) == 4
    assert len(plan_blocks(ExpansionConfig(structure="hybrid"), 2)) == 2


def test_each_block_has_its_own_cache_slot_past_the_last_layer():
    plan = plan_blocks(ExpansionConfig(layers=[5, 2]), 8)
    assert plan == (BlockPlan(2, "concat", 8), BlockPlan(5, "concat", 9))


def test_a_hybrid_alternates_and_starts_with_stack():
    plan = plan_blocks(ExpansionConfig(structure="hybrid", num_blocks=4), 8)
    assert [block.kind for block in plan] == ["stack", "concat", "stack", "concat"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_blocks": 9}, "only 8 layers"),
        ({"layers": [0, 8]}, r"\[8\] out of range; the model has layers 0 to 7"),
        ({"structure": "hybrid", "layers": [0, 1, 2]}, "even number of blocks, got 3"),
        ({"structure": "hybrid", "num_blocks": 1}, "even"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        plan_blocks(ExpansionConfig(**settings), 8)


def test_per_layer_lists_are_extended_with_the_blocks_own_entries():
    config = {
        "layer_types": ["a", "b", "c"],
        "no_rope_layers": [1, 0, 1],
        "eos_token_id": [7, 8, 9],
        "mlp_only_layers": [],
        "num_hidden_layers": 3,
    }
    plan = plan_blocks(ExpansionConfig(layers=[0, 2]), 3)
    assert extended_lists(config, plan, 3) == {
        "layer_types": ["a", "b", "c", "a", "c"],
        "no_rope_layers": [1, 0, 1, 1, 1],
    }
