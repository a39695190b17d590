"""What of the vLLM plugin needs no vLLM; tests/vllm runs the rest in an environment of its own."""

import importlib
import math
import subprocess
import sys
import tomllib

import pytest
import torch

from controlllm.common.errors import ConfigError
from controlllm.integrations.vllm.rows import Rows, per_token
from controlllm.integrations.vllm.words import alpha_of, prefix_salt

NAN = math.nan


class Metadata:
    """What an attention backend of vLLM tells of a forward pass."""

    def __init__(self, starts):
        self.query_start_loc = torch.tensor(starts, dtype=torch.int32)


def same(got, wanted):
    return torch.equal(got.nan_to_num(-1), torch.tensor(wanted).nan_to_num(-1))


def test_the_entry_point_names_a_function(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["vllm.general_plugins"]["controlllm"].split(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_importing_the_plugin_imports_no_vllm():
    code = (
        "import sys, controlllm.integrations.vllm, controlllm.integrations.vllm.words,"
        " controlllm.integrations.vllm.rows\n"
        "assert 'vllm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_token_gets_the_alpha_of_its_request():
    """Requests of 3, 0 and 2 tokens; two tokens of padding; rows left from a larger batch."""
    alphas = torch.tensor([0.0, 0.5, NAN, 0.9])
    starts = torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    assert same(per_token(alphas, starts, 7), [0.0, 0.0, 0.0, NAN, NAN, NAN, NAN])
    alphas[2] = 1.0
    assert same(per_token(alphas, starts, 7), [0.0, 0.0, 0.0, 1.0, 1.0, NAN, NAN])


def test_requests_that_only_pad_a_batch_have_no_tokens():
    starts = torch.tensor([0, 1, 2, 2, 2], dtype=torch.int32)
    got = per_token(torch.tensor([0.2, 0.4, 0.7, 0.7]), starts, 4)
    assert same(got, [0.2, 0.4, NAN, NAN])


def test_rows_are_spread_in_place():
    rows = Rows(max_requests=2, max_tokens=4, device="cpu")
    place = rows.tokens.data_ptr()
    rows.requests.copy_(torch.tensor([0.25, 1.0]))
    got = rows.spread({"layers.0": object(), "layers.1": Metadata([0, 1, 3])}, 3)
    assert same(got, [0.25, 1.0, 1.0]) and got.data_ptr() == place
    assert same(rows.spread(None, 2), [NAN, NAN])  # only memory is measured


@pytest.mark.parametrize("metadata", [{"layers.0": object()}, [{"layers.0": Metadata([0, 1])}]])
def test_a_backend_that_does_not_tell_whose_tokens_is_refused(metadata):
    from controlllm.common.errors import ModelError

    with pytest.raises(ModelError, match="which tokens belong to which request"):
        Rows(1, 1, "cpu").spread(metadata, 1)


def test_alpha_of_a_request():
    assert alpha_of({"alpha": 0}) == 0.0
    assert alpha_of({"alpha": 0.3, "kv_transfer_params": {}}) == 0.3
    assert all(math.isnan(alpha_of(args)) for args in (None, {}, {"alpha": None}))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, NAN, math.inf, "0.3", True, [0.3]])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(ConfigError, match="allowed: a number from 0"):
        alpha_of({"alpha": alpha})


def test_an_unknown_word_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'alhpa' is not known.*Did you mean 'alpha'"):
        alpha_of({"alhpa": 0.3})


def test_equal_alphas_share_prefixes_and_others_do_not():
    assert prefix_salt(None) == prefix_salt({}) == ()
    assert prefix_salt({"alpha": 1}) == prefix_salt({"alpha": 1.0}) != ()
    salts = {prefix_salt({"alpha": alpha}) for alpha in (None, 0, 0.1, 0.3, 0.1 + 0.2, 1)}
    assert len(salts) == 6
