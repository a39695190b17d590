import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from controlllm.checkpoint.training.codec import pack, unpack
from controlllm.common.errors import CheckpointError

keys = st.one_of(st.text(max_size=5), st.sampled_from(["$tensor", "$dict", "$"]), st.integers())
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
nests = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=12,
)


@given(nests)
def test_nested_values_come_back_with_their_types(value: object) -> None:
    plain, tensors = pack(value)
    back = unpack(json.loads(json.dumps(plain)), tensors)
    assert repr(back) == repr(value)


def test_a_real_optimizer_state_comes_back_exactly() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.8, 0.99))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = optimizer.state_dict()
    plain, tensors = pack(state)
    back = unpack(json.loads(json.dumps(plain)), tensors)
    assert back["param_groups"] == state["param_groups"]
    assert list(back["state"]) == [0]
    assert torch.equal(back["state"][0]["exp_avg"], state["state"][0]["exp_avg"])
    assert back["state"][0]["step"].dtype == state["state"][0]["step"].dtype


def test_arrays_stay_arrays() -> None:
    plain, tensors = pack({"keys": np.arange(3, dtype=np.uint32), "one": np.float32(0.5)})
    back = unpack(plain, tensors)
    assert isinstance(back["keys"], np.ndarray)
    assert back["keys"].dtype == np.uint32
    assert back["one"] == 0.5


def test_what_only_a_pickle_could_hold_is_refused_by_place() -> None:
    with pytest.raises(CheckpointError, match=r"state\.a\[1\] is a set"):
        pack({"a": [1, {2}]})
    with pytest.raises(CheckpointError, match="key of type tuple"):
        pack({(1, 2): 3})


def test_a_reference_to_nothing_is_named() -> None:
    with pytest.raises(CheckpointError, match="'7', which the file lacks"):
        unpack({"$tensor": "7"}, {})
