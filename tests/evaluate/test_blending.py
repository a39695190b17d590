"""The weights of several sidecars: within the budget, and none of them better elsewhere."""

import json

import pytest
import torch
from tests.laws.architectures import VOCAB, make_base

from controlllm import expand, expand_beside, load_sidecar, load_sidecars
from controlllm.common.errors import ConfigError, DataError, ModelError
from controlllm.evaluate import calibrate
from controlllm.evaluate.forgetting.retention import measure_settings

GRID = (0.0, 0.5, 1.0)


def rows(seed, low, high):
    """Two batches of rows of a language of their own: tokens from `low` to `high` that count up."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, high - low, (2, 4), generator=generator)
    ids = (starts[..., None] + torch.arange(12)) % (high - low) + low
    return [
        {"input_ids": one, "labels": one, "attention_mask": torch.ones_like(one)} for one in ids
    ]


A, B, OLD = rows(1, 3, 20), rows(2, 30, 45), rows(3, 10, VOCAB)


def learn(model, batches):
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(6):
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("blend")
    torch.manual_seed(0)
    model = learn(expand(make_base("llama"), layers=[1, 3]), A)
    model.save_sidecar(root / "a")
    learn(expand_beside(model, "b", earlier="a", layers=[1, 2]), B).save_sidecar(root / "b")
    return {name: root / name for name in "ab"}


def blended(folders):
    return load_sidecars(make_base("llama"), folders)


def forgotten(model, weights):
    model.set_alpha(weights)
    return measured(model, OLD).forgetting


def measured(model, batches):
    return measure_settings(model, batches, [lambda: None])[0]


@pytest.mark.parametrize("share", [0.0, 0.4, 2.0])
def test_no_dial_alone_makes_it_better(folders, share):
    model = blended(folders)
    budget = max(share * forgotten(model, {"a": 1.0, "b": 1.0}), 0.0)
    found = calibrate(model, {"A": A, "B": B}, {"old": OLD}, budget, GRID, refine_steps=1)
    weights = found.chosen.alpha
    assert found.chosen.forgetting <= budget
    assert {n: e.dial for n, e in model.expansions.items()} == weights  # in force, to be saved
    assert measured(model, OLD).loss == found.chosen.retain["old"].loss
    tried = [point.alpha for point in found.points]
    assert len(tried) == len({json.dumps(one) for one in tried})  # none twice
    for name in weights:
        for alpha in GRID:
            other = weights | {name: alpha}
            model.set_alpha(other)
            loss = sum(measured(model, batches).loss for batches in (A, B)) / 2
            within = measured(model, OLD).forgetting <= budget
            assert not within or loss >= found.chosen.learn_loss or other == weights
    if share == 0.0:
        assert all(weight == 0 for weight in weights.values()) or found.chosen.forgetting <= 0
    if share == 2.0:
        assert all(weights.values())


def test_a_branch_is_blended_with_what_stands_beside_it(folders):
    model = learn(expand(make_base("llama"), layers=[1, 3]), A)
    model = learn(expand_beside(model, "b", earlier="a", layers=[1], interpolator="dlerp"), B)
    found = calibrate(model, {"B": B}, {"old": OLD}, 0.3, GRID, refine_steps=0)
    assert found.chosen.alpha.keys() == {"a", "b"}
    assert measured(model, B).loss == found.chosen.learn["B"].loss


def test_a_dial_by_layer_is_measured_as_it_stood(folders):
    model = blended(folders)
    model.set_alpha({"a": {3: 0.4}, "b": 0.5})
    stood = measured(model, B).loss
    found = calibrate(model, {"B": B}, {"old": OLD}, 9.0, GRID, refine_steps=0)
    (point,) = [one for one in found.points if set(one.alpha.values()) == {None}]
    assert point.learn["B"].loss == stood


def test_table_and_json(folders, tmp_path):
    found = calibrate(blended(folders), {"B": B}, {"old": OLD}, 0.1, GRID, refine_steps=0)
    header, *lines = found.table().splitlines()
    assert [name in header for name in ("a", "b", "loss of B", "forgetting of old")] == [True] * 4
    assert sum("chosen" in line for line in lines) == 1
    found.save(tmp_path / "blend.json")
    read = json.loads((tmp_path / "blend.json").read_text())
    assert read["dial"] == "weights" and read["chosen"] == found.chosen.alpha
    assert [*read["chosen"]] == ["a", "b"]
    assert len(read["points"]) == len(found.points)
    assert found.chosen.label.startswith("a ")


def test_what_cannot_be(folders):
    with pytest.raises(ConfigError, match="max_forgetting"):
        calibrate(blended(folders), {"B": B}, {"old": OLD}, -1)
    with pytest.raises(ConfigError, match="alphas"):
        calibrate(blended(folders), {"B": B}, {"old": OLD}, 0.1, [2.0])
    with pytest.raises(DataError, match="retain"):
        calibrate(blended(folders), {"B": B}, {}, 0.1, GRID)
    with pytest.raises(ModelError, match="has no alpha"):
        calibrate(make_base("llama"), {"B": B}, {"old": OLD})


def test_one_sidecar_with_a_name_is_as_one_without(folders):
    found = calibrate(
        load_sidecars(make_base("llama"), {"a": folders["a"]}), {"A": A}, {"old": OLD}, 0.1, GRID
    )
    alone = calibrate(
        load_sidecar(make_base("llama"), folders["a"]), {"A": A}, {"old": OLD}, 0.1, GRID
    )
    assert found.chosen.forgetting <= 0.1 and alone.chosen.forgetting <= 0.1
    assert found.chosen.learn_loss <= alone.chosen.learn_loss
