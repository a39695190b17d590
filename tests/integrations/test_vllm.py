"""What of the vLLM plugin needs no vLLM; tests/vllm runs the rest in an environment of its own."""

import importlib
import math
import subprocess
import sys
import tomllib

import pytest
import torch

from controlllm.common.errors import ConfigError
from controlllm.integrations.vllm.names import variant, variant_name
from controlllm.integrations.vllm.rows import Rows, as_saved, per_token
from controlllm.integrations.vllm.words import alphas_of, at_rest, prefix_salt

NAN = math.nan
TWO = ("maths", "zh")


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
        " controlllm.integrations.vllm.rows, controlllm.integrations.vllm.names\n"
        "assert 'vllm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_token_gets_the_alphas_of_its_request():
    """Requests of 3, 0 and 2 tokens; two tokens of padding; rows left from a larger batch."""
    alphas = torch.tensor([[0.0, 1.0], [0.5, 0.5], [NAN, 0.0], [0.9, 0.9]])
    starts = torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    first, last, padding = [[0.0, 1.0]] * 3, [[NAN, 0.0]] * 2, [[0.0, 0.0]] * 2
    assert same(per_token(alphas, starts, 7), first + last + padding)
    alphas[2] = 0.25
    assert same(per_token(alphas, starts, 7), first + [[0.25, 0.25]] * 2 + padding)


def test_requests_that_only_pad_a_batch_have_no_tokens():
    starts = torch.tensor([0, 1, 2, 2, 2], dtype=torch.int32)
    got = per_token(torch.tensor([[0.2], [0.4], [0.7], [0.7]]), starts, 4)
    assert same(got, [[0.2], [0.4], [0.0], [0.0]])


def test_rows_are_spread_in_place():
    rows = Rows(max_requests=2, max_tokens=4, device="cpu")
    place = rows.tokens.data_ptr()
    rows.requests.copy_(torch.tensor([[0.25], [1.0]]))
    got = rows.spread({"layers.0": object(), "layers.1": Metadata([0, 1, 3])}, 3)
    assert same(got, [[0.25], [1.0], [1.0]]) and got.data_ptr() == place
    assert same(rows.spread(None, 2), [[NAN], [NAN]])  # only memory is measured


def test_rows_of_several_sidecars_are_off_until_a_request_says_more():
    rows = Rows(2, 4, "cpu", TWO)
    assert same(rows.requests, [[0.0, 0.0]] * 2)
    rows.requests[0] = torch.tensor(alphas_of({"sidecar": "zh", "alpha": 0.5}, TWO))
    got = rows.spread({"layers.0": Metadata([0, 1, 3])}, 3)
    assert same(got, [[0.0, 0.5], [0.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize("metadata", [{"layers.0": object()}, [{"layers.0": Metadata([0, 1])}]])
def test_a_backend_that_does_not_tell_whose_tokens_is_refused(metadata):
    from controlllm.common.errors import ModelError

    with pytest.raises(ModelError, match="which tokens belong to which request"):
        Rows(1, 1, "cpu").spread(metadata, 1)


def test_what_a_request_does_not_say_is_as_it_was_saved():
    alphas = torch.tensor([0.0, NAN, 0.3])
    assert same(as_saved(alphas, None), [0.0, NAN, 0.3])
    assert same(as_saved(alphas, 0.8), [0.0, 0.8, 0.3])


def test_alpha_of_a_request():
    assert alphas_of({"alpha": 0}) == [0.0]
    assert alphas_of({"alpha": 0.3, "kv_transfer_params": {}}) == [0.3]
    for said in (None, {}, {"alpha": None}):
        assert same(torch.tensor(alphas_of(said)), [NAN])
        assert same(torch.tensor(alphas_of(said, TWO[:1])), [NAN])


@pytest.mark.parametrize(
    ("said", "alphas"),
    [
        ({}, [0.0, 0.0]),
        ({"alpha": 0}, [0.0, 0.0]),
        ({"sidecar": "zh"}, [0.0, NAN]),
        ({"sidecar": "maths", "alpha": 0.3}, [0.3, 0.0]),
        ({"sidecar": ["zh", "maths"], "alpha": [0.2, 1]}, [1.0, 0.2]),
        ({"sidecar": ["zh", "maths"]}, [NAN, NAN]),
        ({"sidecar": ["zh"], "alpha": [0.5]}, [0.0, 0.5]),
        ({"sidecar": []}, [0.0, 0.0]),
    ],
    ids=str,
)
def test_the_sidecars_of_a_request(said, alphas):
    assert same(torch.tensor(alphas_of(said, TWO)), alphas)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, NAN, math.inf, "0.3", True, [0.3]])
def test_an_alpha_out_of_range_is_refused(alpha):
    for said, names in (({"alpha": alpha}, ()), ({"alpha": [alpha], "sidecar": ["zh"]}, TWO)):
        with pytest.raises(ConfigError, match="allowed: a number from 0"):
            alphas_of(said, names)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"alhpa": 0.3}, r"'alhpa' is not known.*Did you mean 'alpha'"),
        ({"sidecar": "math"}, r"sidecar='math' is not known; allowed: maths, zh.*'maths'"),
        ({"sidecar": ["zh", 3]}, "sidecar=3 is not known"),
        ({"sidecar": 3, "alpha": 0.3}, "sidecar=3 is not known"),
        ({"alpha": 0.3}, r"alpha=0.3 does not say whose.*maths, zh"),
        ({"sidecar": ["zh", "zh"], "alpha": [0.1, 0.2]}, "a list of different names"),
        ({"sidecar": ["zh", "maths"], "alpha": [0.1]}, "a list of different names"),
        ({"sidecar": ["zh", "maths"], "alpha": 0.1}, "a list of different names"),
        ({"sidecar": "zh", "alpha": [0.1]}, "allowed: a number from 0"),
    ],
    ids=str,
)
def test_what_is_not_known_is_refused_with_what_is_allowed(said, words):
    with pytest.raises(ConfigError, match=words):
        alphas_of(said, TWO)


def test_a_sidecar_without_a_name_cannot_be_named():
    with pytest.raises(ConfigError, match="has no name"):
        alphas_of({"sidecar": "zh"})


def test_equal_alphas_share_prefixes_and_others_do_not():
    assert prefix_salt(None) == prefix_salt({}) == ()
    assert prefix_salt({"alpha": 1}) == prefix_salt({"alpha": 1.0}) != ()
    salts = {prefix_salt({"alpha": alpha}) for alpha in (None, 0, 0.1, 0.3, 0.1 + 0.2, 1)}
    assert len(salts) == 6


def test_equal_sidecars_share_prefixes_and_others_do_not():
    said = [
        {},
        {"sidecar": "zh"},
        {"sidecar": "maths"},
        {"sidecar": "zh", "alpha": 0.3},
        {"sidecar": "maths", "alpha": 0.3},
        {"sidecar": ["maths", "zh"], "alpha": [0.3, 0.2]},
        {"sidecar": ["zh", "maths"], "alpha": [0.3, 0.2]},
        {"sidecar": ["maths", "zh"]},
    ]
    assert len({prefix_salt(one) for one in said}) == len(said)
    turned = {"sidecar": ["zh", "maths"], "alpha": [0.2, 0.3]}
    assert prefix_salt(turned) == prefix_salt(said[5])
    assert prefix_salt({"sidecar": ["zh"], "alpha": [0.3]}) == prefix_salt(said[3])


def test_a_class_is_found_by_a_name_that_says_the_sidecars():
    class Words:
        sidecars = ()

    assert variant_name("Words", ()) == "Words"
    name = variant_name("Words", ["maths", "z.h-1"])
    assert name.isidentifier()
    assert variant(Words, name).sidecars == ("maths", "z.h-1")
    for other in ("Other_5b5d", "Words_zz", "Words", "Words_", "__path__"):
        with pytest.raises(AttributeError, match="has no attribute"):
            variant(Words, other)


def test_what_rests_is_the_base_where_there_are_several():
    assert at_rest(TWO) == [0.0, 0.0]
    assert same(torch.tensor(at_rest(())), [NAN])
