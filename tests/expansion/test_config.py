import dataclasses
import json

import pytest

from controlllm import ExpansionConfig
from controlllm.common.errors import ConfigError


def test_defaults_are_the_authors_for_fine_tuning():
    config = ExpansionConfig()
    assert (config.structure, config.interpolator, config.alpha) == ("concat", "lerp", 0.5)
    assert (config.divergence, config.divergence_weight, config.train_alpha) == ("mse", 1.0, False)
    assert config.frozen_groups == ("blocks", "embeddings", "norm", "head")


@pytest.mark.parametrize(
    "field, value, near",
    [
        ("structure", "concatt", "concat"),
        ("interpolator", "slurp", "slerp"),
        ("divergence", "cosin", "cosine"),
        ("divergence_tokens", "targets", "target"),
        ("freeze", ["embedding"], "embeddings"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(field, value, near):
    with pytest.raises(ConfigError) as caught:
        ExpansionConfig(**{field: value})
    message = str(caught.value)
    assert field in message and repr(value[0] if isinstance(value, list) else value) in message
    assert f"Did you mean {near!r}?" in message
    assert "allowed:" in message


@pytest.mark.parametrize(
    "settings, shown",
    [
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"num_blocks": 2.0}, "num_blocks=2.0"),
        ({"num_blocks": True}, "num_blocks=True"),
        ({"layers": []}, "layers=[]"),
        ({"layers": [1, 1]}, "twice"),
        ({"layers": ["1"]}, "layers=['1']"),
        ({"layers": [1, 2], "num_blocks": 3}, "one of the two"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": "0.5"}, "alpha='0.5'"),
        ({"alpha": 0, "train_alpha": True}, "infinite"),
        ({"alpha": 1, "interpolator": "dlerp"}, "infinite"),
        ({"dial": -1}, "dial=-1"),
        ({"dial": {"3": 2}}, "dial=2"),
        ({"divergence_weight": -1}, "divergence_weight=-1"),
        ({"divergence_weight": "dynamc"}, "'dynamic'"),
        ({"divergence_weight": float("nan")}, "divergence_weight=nan"),
        ({"divergence_weight": float("inf")}, "divergence_weight=inf"),
        ({"relaxed_norm": 2}, "relaxed_norm=2"),
        ({"relaxed_norm": "dyn"}, "relaxed_norm='dyn'"),
        ({"relaxed_norm": "dynamic", "interpolator": "dlerp"}, "constant alpha"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_what_is_allowed(settings, shown):
    with pytest.raises(ConfigError) as caught:
        ExpansionConfig(**settings)
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_blocks": 2, "layers": [3, 1]},
        {"alpha": 1},
        {"alpha": 0.0},
        {"divergence_weight": "dynamic"},
        {"divergence": "none"},
        {"relaxed_norm": "dynamic", "interpolator": "slerp"},
        {"freeze": []},
    ],
    ids=str,
)
def test_right_values_are_taken(settings):
    assert ExpansionConfig(**settings)


def test_json_round_trip_keeps_layers_as_numbers():
    config = ExpansionConfig(layers=[1, 3], dial={1: 0.2, 3: 0.4}, mean_alpha={1: 0.6})
    again = ExpansionConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.dial == {1: 0.2, 3: 0.4}


def test_an_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'interpolator'"):
        ExpansionConfig.from_dict({"interpolater": "lerp"})


def test_a_config_error_is_a_value_error():
    with pytest.raises(ValueError, match="structure"):
        ExpansionConfig(structure="none")


def test_every_field_is_plain_data():
    for field in dataclasses.fields(ExpansionConfig):
        json.dumps(getattr(ExpansionConfig(), field.name))
