"""`continue_by: branch`: B beside A in a whole run, saved alone, found again together."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.test_continuing import base_of, stage_run  # noqa: F401  # a fixture
from tests.train.ways import logits

from controlllm import collapse, load_sidecars
from controlllm.checkpoint import LoadOptions, export, inspect_folder, load_model, locate, make_form
from controlllm.common.errors import CheckpointError, ConfigError, ModelError
from controlllm.evaluate.forgetting.losses import evaluating
from controlllm.expansion.files.lineage import sidecar_digest
from controlllm.expansion.files.records import read_sidecar_config
from controlllm.train import train
from controlllm.train.setup.ready import set_up
from controlllm.train.setup.ways.earlier import settled_run

BY = {"continue_by": "branch"}
OTHER = {"expansion": {"num_blocks": None, "layers": [1], "interpolator": "dlerp"}}


def newest(tmp_path, name):
    return load_model(tmp_path / "runs" / name)[0]


def place(tmp_path, name):
    return Path(locate(tmp_path / "runs" / name).path)


def test_b_is_saved_alone_and_loaded_beside_a(stage_run, tmp_path):  # noqa: F811
    train(stage_run("a"))
    a = newest(tmp_path, "a")
    train(stage_run("b", "a", **BY, **OTHER))
    b = newest(tmp_path, "b")
    assert b.sidecars == ("a", "b") and not torch.equal(logits(b), logits(a))
    b.set_alpha(0)
    assert torch.equal(logits(b), logits(a))
    b.set_alpha({})
    assert torch.equal(logits(b), logits(base_of(tmp_path)))
    (parent,) = read_sidecar_config(place(tmp_path, "b"))["parents"]
    assert parent["name"] == "a" and parent["way"] == "branch"
    saved = load_file(place(tmp_path, "b") / "sidecar.safetensors")
    assert saved and all(name.startswith("model.layers.1.") for name in saved)
    folders = {name: place(tmp_path, name) for name in "ab"}
    several = load_sidecars(base_of(tmp_path), folders)
    for alphas in ({"a": None, "b": None}, {"a": 0.3, "b": 0.6}):
        b.set_alpha(alphas)
        several.set_alpha(alphas)
        assert torch.equal(logits(b), logits(several))
    assert [part.name for part in inspect_folder(tmp_path / "runs" / "b").parts] == [
        "model.layers.1",
        "base",
    ]


def test_each_stage_is_asked_as_it_was(stage_run, tmp_path):  # noqa: F811
    """Three branches, the dial of the first by layer: the base, A and B beside C."""
    train(stage_run("a", expansion={"dial": {1: 0.9, 3: 0.4}, "num_blocks": 2}))
    train(stage_run("b", "a", **BY, **OTHER))
    train(stage_run("c", "b", **BY, expansion={"num_blocks": 1}))
    stages = {"base": base_of(tmp_path), "a": newest(tmp_path, "a"), "b": newest(tmp_path, "b")}
    c = newest(tmp_path, "c")
    assert c.sidecars == ("a", "b", "c") and c.expansions["a"].dial == {1: 0.9, 3: 0.4}
    ready = set_up(settled_run(stage_run("d", "c", **BY)))
    assert list(ready.references) == ["base", "a", "b", "c"]
    for name, model in {**stages, "c": c}.items():
        with ready.references[name].active() as stage, evaluating(stage):
            assert torch.equal(logits(stage), logits(model))
    assert torch.equal(logits(ready.model), logits(c))  # as it begins
    ready = set_up(settled_run(stage_run("e", "c")))  # one: c's copies go on beside a and b
    assert ready.model.sidecars == ("a", "b", "c")
    assert list(ready.references) == ["base", "a", "b", "c"]
    for name, model in {**stages, "c": c}.items():
        with ready.references[name].active() as stage, evaluating(stage):
            assert torch.equal(logits(stage), logits(model))


def test_an_earlier_stage_stands_on_what_it_was_learned_beside(stage_run, tmp_path):  # noqa: F811
    """Not where a later run's calibration turned that; and what it wrote is found again."""
    short = {"training": {"max_steps": 2}}
    train(stage_run("a", **short))
    train(stage_run("b", "a", **BY, **OTHER, **short))
    train(stage_run("c", "b", **BY, **short))
    c = newest(tmp_path, "c")
    c.set_alpha({"a": 0.2, "b": 0.7, "c": 1.0})
    c.save_sidecar(tmp_path / "runs" / "c" / "calibrated")
    before, ready = (
        set_up(settled_run(stage_run("d", after, **BY, **short))) for after in ("c", "c/calibrated")
    )
    for name in ("a", "b"):
        with ready.references[name].active() as stage, evaluating(stage):
            assert torch.equal(logits(stage), logits(newest(tmp_path, name)))
    with ready.references["c"].active() as stage, evaluating(stage):
        assert torch.equal(logits(stage), logits(c))
    keys, again = ([stage.key for stage in one.stages] for one in (before, ready))
    assert keys[:3] == again[:3] and keys[3] != again[3]


@pytest.mark.parametrize("way", ["one", "branch"])
def test_each_stage_is_read_once(stage_run, tmp_path, monkeypatch, way):  # noqa: F811
    short, read = {"training": {"max_steps": 2}}, []
    train(stage_run("a", **short))
    for name, before in ("ba", "cb"):
        train(stage_run(name, before, continue_by=way, **short))

    def digest(folder, tensors=None):
        read.append(Path(folder).parent.name)
        return sidecar_digest(folder, tensors)

    monkeypatch.setattr("controlllm.expansion.files.lineage.sidecar_digest", digest)
    settled = settled_run(stage_run("d", "c", **BY, **short))
    assert read == []
    set_up(settled)
    assert sorted(read) == ["a", "b", "c"]


def test_one_after_a_branch_and_a_branch_after_one(stage_run, tmp_path):  # noqa: F811
    train(stage_run("a"))
    train(stage_run("b", "a", **BY, **OTHER))
    train(stage_run("c", "b"))
    c = newest(tmp_path, "c")
    assert c.sidecars == ("a", "c")
    c.set_alpha({"a": None})
    assert torch.equal(logits(c), logits(newest(tmp_path, "a")))
    train(stage_run("d", "c", **BY, expansion={"num_blocks": 1}))
    d = newest(tmp_path, "d")
    assert d.sidecars == ("a", "c", "d")
    d.set_alpha(0)
    assert torch.equal(logits(d), logits(newest(tmp_path, "c")))


def test_a_branch_on_a_folded_base(stage_run, tmp_path):  # noqa: F811
    train(stage_run("a"))
    train(stage_run("b", "a", continue_by="fold"))
    train(stage_run("c", "b", **BY))
    c = newest(tmp_path, "c")
    assert c.sidecars == ("b", "c")
    c.set_alpha(0)
    assert torch.equal(logits(c), logits(newest(tmp_path, "b")))
    train(stage_run("d", "c", continue_by="fold"))  # Both are folded.
    d = newest(tmp_path, "d")
    d.set_alpha(0)
    assert torch.equal(logits(d), logits(collapse(newest(tmp_path, "c"))))


def test_resume_is_exact(stage_run, tmp_path):  # noqa: F811
    """With alpha sampling and rehearsal: stopped in the middle, the rest is the same."""
    more = {
        "training": {"alpha_sampling": [0.1, 1.0], "gradient_checkpointing": True},
        "rehearsal": {"num_sequences": 6, "share": 0.3},
    }
    train(stage_run("a"))
    train(stage_run("b", "a", **BY, **OTHER, **more))
    whole = load_file(tmp_path / "runs" / "b" / "checkpoint-6" / "sidecar.safetensors")
    run = stage_run("b", "a", **BY, **OTHER, **more)
    for gone in (tmp_path / "runs" / "b").glob("checkpoint-*"):
        if gone.name != "checkpoint-2":
            shutil.rmtree(gone)
    (tmp_path / "runs" / "b" / "best.json").unlink(missing_ok=True)
    train(replace(run, training=replace(run.training, resume_from_checkpoint="auto")))
    again = load_file(tmp_path / "runs" / "b" / "checkpoint-6" / "sidecar.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_what_is_missing_is_named(stage_run, tmp_path):  # noqa: F811
    train(stage_run("a"))
    train(stage_run("b", "a", **BY))
    expected = logits(newest(tmp_path, "b"))
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    assert torch.equal(logits(load_model(tmp_path / "moved" / "b")[0]), expected)
    shutil.move(tmp_path / "moved" / "a", tmp_path / "hidden")
    with pytest.raises(CheckpointError, match=r"'a', which is missing: .* looked for in .*runs"):
        load_model(tmp_path / "moved" / "b")
    train(stage_run("other", training={"max_steps": 2, "seed": 3}))
    name = Path(locate(tmp_path / "hidden").path).name
    shutil.copytree(place(tmp_path, "other"), tmp_path / "moved" / "a" / name)
    with pytest.raises(CheckpointError, match="holds another one"):
        load_model(tmp_path / "moved" / "b")


def test_a_blend_is_kept_in_the_sidecar(stage_run, tmp_path):  # noqa: F811
    train(stage_run("a"))
    train(stage_run("b", "a", **BY))
    model, tokenizer = load_model(tmp_path / "runs" / "b")
    model.set_alpha({"a": 0.25, "b": 0.75})
    blended = logits(model)
    folder = tmp_path / "runs" / "blend"
    export(model, folder, make_form("sidecar", {}), tokenizer)
    values = json.loads((folder / "sidecar_config.json").read_text())
    assert values["expansion"]["dial"] == 0.75
    (parent,) = values["parents"]
    assert parent["weight"] == 0.25 and parent["dial"] is None
    again = load_model(folder)[0]
    assert torch.equal(logits(again), blended)
    again.set_alpha({"a": None, "blend": 0.75})
    again.save_sidecar(tmp_path / "runs" / "other")
    assert "weight" not in read_sidecar_config(tmp_path / "runs" / "other")["parents"][0]
    export(model, tmp_path / "plain", make_form("collapsed", {}), tokenizer)
    assert torch.equal(logits(load_model(tmp_path / "plain")[0]), logits(collapse(model)))
    assert "a: 0.25, b: 0.75" in (tmp_path / "plain" / "README.md").read_text()
    with pytest.raises(ModelError, match="of one sidecar"):
        export(model, tmp_path / "low", make_form("lora", {}), tokenizer)
    bits = make_form("sidecar", {"bits": 4})
    export(model, tmp_path / "runs" / "few", bits, tokenizer)
    few = load_model(tmp_path / "runs" / "few")[0]
    assert few.sidecars == ("a", "few")  # by its folder
    few.set_alpha({"a": 0.25})
    model.set_alpha({"a": 0.25})
    assert torch.equal(logits(few), logits(model))


@pytest.mark.parametrize(
    ("over", "match"),
    [
        ({"peft": {"type": "lora", "r": 4}}, "peft.type=lora has no place"),
        ({"expansion": {"num_blocks": None, "freeze": ["norm"]}}, "trained parts of the base"),
        ({"parallel": {"strategy": "zero2"}}, "strategy"),
    ],
)
def test_what_has_no_place_beside_others_is_refused(stage_run, over, match):  # noqa: F811
    train(stage_run("a", training={"max_steps": 2}))
    with pytest.raises((ConfigError, ModelError), match=match):
        train(stage_run("b", "a", **BY, **over))


def test_it_is_loaded_as_options_say(stage_run, tmp_path):  # noqa: F811
    train(stage_run("a", training={"max_steps": 2}))
    train(stage_run("b", "a", **BY, training={"max_steps": 2}))
    half = load_model(tmp_path / "runs" / "b", LoadOptions(dtype="bfloat16"))[0]
    assert half.dtype == torch.bfloat16 and half.sidecars == ("a", "b")
    moved = shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    assert load_model(tmp_path / "runs" / "b", LoadOptions(base=moved))[0].sidecars == ("a", "b")
