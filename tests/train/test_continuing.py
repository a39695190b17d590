"""A run goes on from another one: what is exact after each way, and what is recorded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.train.helpers import losses_of
from tests.train.test_resume import assert_same_run, train_until_killed
from tests.train.ways import base_folder, logits

from controlllm.checkpoint import (
    LoadOptions,
    export,
    find_parent,
    inspect_folder,
    load_model,
    locate,
    record_stage,
)
from controlllm.cli.inspect import run as inspect
from controlllm.common.errors import CheckpointError, ConfigError, ModelError
from controlllm.evaluate.forgetting.losses import evaluating
from controlllm.expansion import ControlLLMForCausalLM, collapse, load_sidecar
from controlllm.expansion.files.records import read_sidecar_config
from controlllm.train import RunConfig, train
from controlllm.train.record.descriptions import describe_sets
from controlllm.train.setup.ready import set_up
from controlllm.train.setup.ways.earlier import settled_run

THIRD = "1 + 1 = 2. 2 + 2 = 4. 3 + 5 = 8. "


@pytest.fixture
def stage_run(run_config, loaded, tmp_path):
    """`stage_run("b", "a", **sections)`: a run named so, which goes on from another one."""
    (tmp_path / "third.txt").write_text(THIRD * 30)
    (tmp_path / "third_heldout.txt").write_text(THIRD * 3)
    base = base_folder(loaded, tmp_path)

    def make(name, after=None, **over):
        training = {"output_dir": str(tmp_path / "runs" / name), **over.pop("training", {})}
        if after is None:
            over.setdefault("model", {"model_name_or_path": base})
            return run_config(training=training, **over)
        data = {
            "train": [{"path": str(tmp_path / "third.txt")}],
            "learn": [{"path": str(tmp_path / "third_heldout.txt"), "name": "third"}],
        }
        over = {"expansion": {"num_blocks": None}, "data": data, **over}
        place = str(tmp_path / "runs" / after)
        return run_config(continue_from=place, training=training, **over)

    return make


def base_of(tmp_path):
    return load_model(tmp_path / "base")[0]


def test_one_keeps_the_base_and_the_stage_before(stage_run, tmp_path):
    train(stage_run("a"))
    a = load_model(tmp_path / "runs" / "a")[0]
    result = train(stage_run("b", "a"))
    b = load_model(tmp_path / "runs" / "b")[0]
    assert not torch.equal(logits(b), logits(a))
    b.set_alpha(0)
    assert torch.equal(logits(b), logits(base_of(tmp_path)))
    ready = set_up(settled_run(stage_run("b2", "a")))
    assert list(ready.references) == ["base", "a"]
    for reference, model in ((ready.before, a), (ready.reference, base_of(tmp_path))):
        with reference.active() as stage, evaluating(stage):
            assert torch.equal(logits(stage), logits(model))
    assert result.stopped_because == "max_steps"


def test_fold_begins_anew_on_the_folded_stage(stage_run, tmp_path):
    """Alpha 0 is the stage before, folded, bit for bit; also of a saved run, and two folds deep."""
    train(stage_run("a"))
    a = load_model(tmp_path / "runs" / "a")[0]
    train(stage_run("b", "a", continue_by="fold"))
    b = load_model(tmp_path / "runs" / "b")[0]
    again = collapse(b)
    b.set_alpha(0)
    assert torch.equal(logits(b), logits(collapse(a)))
    train(stage_run("c", "b", continue_by="fold"))
    c = load_model(tmp_path / "runs" / "c")[0]
    c.set_alpha(0)
    assert torch.equal(logits(c), logits(again))
    ready = set_up(settled_run(stage_run("d", "c")))
    assert list(ready.references) == ["base", "a", "b", "c"]
    with ready.reference.active() as stage, evaluating(stage):
        assert torch.equal(logits(stage), logits(base_of(tmp_path)))


def test_a_chain_is_recorded(stage_run, tmp_path):
    train(stage_run("a"))
    train(stage_run("b", "a"))
    checkpoint = Path(locate(tmp_path / "runs" / "b").path)
    (parent,) = read_sidecar_config(checkpoint)["parents"]
    assert parent["name"] == "a" and parent["way"] == "one" and parent["dial"] is None
    assert parent["place"] == locate(tmp_path / "runs" / "a").path
    model = load_sidecar(base_of(tmp_path), checkpoint)
    model.save_sidecar(tmp_path / "copy")
    assert read_sidecar_config(tmp_path / "copy")["parents"] == [parent]
    model.save_pretrained(tmp_path / "full")
    assert json.loads((tmp_path / "full" / "config.json").read_text())["parents"] == [parent]
    full = ControlLLMForCausalLM.from_pretrained(tmp_path / "full")
    assert full.config.parents == [parent]


def test_a_folded_base_says_what_is_missing(stage_run, tmp_path):
    train(stage_run("a"))
    train(stage_run("b", "a", continue_by="fold"))
    expected = logits(load_model(tmp_path / "runs" / "b")[0])
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    assert torch.equal(logits(load_model(tmp_path / "moved" / "b")[0]), expected)
    folder = tmp_path / "moved" / "a"
    shutil.move(folder, tmp_path / "hidden")
    with pytest.raises(CheckpointError, match=r"'a', which is missing: .* looked for in .*runs"):
        load_model(tmp_path / "moved" / "b")
    train(stage_run("other", training={"max_steps": 2, "seed": 3}))
    name = Path(locate(tmp_path / "hidden").path).name
    shutil.copytree(locate(tmp_path / "runs" / "other").path, folder / name)
    with pytest.raises(CheckpointError, match="holds another one"):
        load_model(tmp_path / "moved" / "b")


@pytest.mark.parametrize(
    ("over", "match"),
    [
        ({"expansion": {"num_blocks": 1}}, r"num_blocks=1.*goes on with the same copies"),
        ({"method": "full"}, "needs method='control'"),
        ({"model": {"model_name_or_path": "elsewhere", "base": "there"}}, "name two bases"),
    ],
)
def test_contradictions_are_refused(stage_run, over, match):
    train(stage_run("a", training={"max_steps": 2}))
    with pytest.raises(ConfigError, match=match):
        train(stage_run("b", "a", **over))


DEFAULTS = {"divergence": "mse", "divergence_weight": 1.0, "expand_ends": False, "alpha": 0.5}


def test_what_is_said_holds_where_it_is_a_default(stage_run):
    """New copies are as the run says, and its preset; what neither says is as it was."""
    train(stage_run("a", preset="sidecar", training={"max_steps": 2}))
    other = {"expansion": {**DEFAULTS, "num_blocks": None}}
    new = {"continue_by": "branch"}
    with pytest.raises(ConfigError, match=r"alpha=0.5, but that of .* is 0.15"):
        settled_run(stage_run("b", "a", **other))
    kept = settled_run(stage_run("b", "a", **new)).expansion
    assert (kept.divergence, kept.expand_ends, kept.alpha) == ("none", True, 0.15)
    run = settled_run(stage_run("b", "a", **new, **other))
    assert {name: getattr(run.expansion, name) for name in DEFAULTS} == DEFAULTS
    assert run.expansion.num_blocks == kept.num_blocks == 2
    repeated = settled_run(RunConfig.from_dict(run.to_dict()))
    assert repeated == run
    run = settled_run(stage_run("b", "a", **new, preset="retain", expansion={"num_blocks": 1}))
    told = (run.expansion.divergence, run.expansion.divergence_weight, run.expansion.num_blocks)
    assert told == ("nmse", 0.3, 1)


def test_a_preset_that_the_same_copies_do_not_follow_is_told(stage_run, caplog):
    train(stage_run("a", preset="retain", training={"max_steps": 2}))
    run = settled_run(stage_run("b", "a", preset="sidecar"))
    assert run.expansion.divergence == "nmse" and run.rehearsal.weight == 3.0
    assert "expansion.divergence='none' of the preset 'sidecar' is not used" in caplog.text
    # What was recorded of the divergence has no meaning beside the preset's.
    run = settled_run(stage_run("b", "a", preset="sidecar", continue_by="branch"))
    assert run.expansion.divergence == "none" and run.expansion.divergence_weight == 1.0


def test_what_a_stage_learned_is_measured_beside_it(stage_run, tmp_path):
    """A later run sees its loss rise beside the stage, where beside the base it has fallen."""
    train(stage_run("a", training={"max_steps": 12}))
    result = train(stage_run("b", "a", training={"max_steps": 12, "learning_rate": 5e-2}))
    first, last = (
        result.history[0],
        [row for row in result.history if "learn/third/loss" in row][-1],
    )
    assert first["retain/a/new/forgetting"] == 0.0
    assert first["retain/a/new/loss_at_a"] == first["retain/a/new/loss"]
    assert first["learn/third/loss_at_a"] == first["learn/third/loss"]
    assert last["retain/a/new/loss_at_base"] > last["retain/a/new/loss"]
    assert last["retain/a/new/forgetting"] > 0
    assert last["retain/a/new/loss_at_a"] == first["retain/a/new/loss_at_a"]
    best = json.loads((tmp_path / "runs" / "b" / "best.json").read_text())["metrics"]
    assert set(best) == {"learn_loss", "forgetting", "forgetting/base", "forgetting/a"}


def test_each_stage_has_its_budget(stage_run, tmp_path):
    train(stage_run("a"))
    over = {"learning_rate": 5e-2, "stop_on_budget": True, "eval_steps": 1}
    budget = {"base": 100.0, "a": 0.0}
    result = train(stage_run("b", "a", training={**over, "max_forgetting": budget}))
    assert result.stopped_because == "max_forgetting of a"
    with pytest.raises(ConfigError, match=r"'c' is not known; allowed: a, base"):
        train(stage_run("b2", "a", training={"max_forgetting": {"c": 0.1}}))
    (tmp_path / "new_heldout.txt").unlink()
    with pytest.raises(ConfigError, match="budget for 'a', of which nothing"):
        train(stage_run("b3", "a", training={"max_forgetting": {"a": 0.1}}))


def test_each_stage_writes_what_is_rehearsed(stage_run, tmp_path):
    rehearsal = {"num_sequences": 4, "share": 0.25}
    train(stage_run("a", rehearsal=rehearsal))
    train(stage_run("b", "a", rehearsal=rehearsal))
    runs = tmp_path / "runs"
    assert not (runs / "b" / "rehearsal").exists()  # What the base wrote for a is found there.
    (written,) = (runs / "a" / "own_text").glob("*.json")
    assert len(json.loads(written.read_text())["sequences"]) == 4
    ready = set_up(settled_run(stage_run("c", "b", rehearsal=rehearsal)))
    assert list(ready.references) == ["base", "a", "b"]
    assert len([*(runs / "a" / "own_text").glob("*.json")]) == 1
    assert len([*(runs / "b" / "own_text").glob("*.json")]) == 1
    assert ready.loss.reference is ready.references["b"]


def test_prompts_are_taken_from_a_stages_own_folder(stage_run, tmp_path, caplog):
    """Whoever made the run may have named any file; what a stage writes is trained on."""
    runs, rehearsal = tmp_path / "runs", {"num_sequences": 4, "share": 0.25}
    secret = tmp_path / "prompts.txt"
    secret.write_text("once upon\n")
    with_prompts = {"rehearsal": {**rehearsal, "prompts": str(secret)}}
    train(stage_run("a", **with_prompts))
    left = "lies outside of its folder (continue_trust=true takes it"
    for over, is_left in (({}, True), ({"continue_trust": True}, False)):
        caplog.clear()
        set_up(settled_run(stage_run("b", "a", rehearsal=rehearsal, **over)))
        assert (left in caplog.text) is is_left
    (runs / "a" / "prompts.txt").write_text("once upon\n")
    config = runs / "a" / "config.yaml"
    config.write_text(config.read_text().replace(str(secret), str(runs / "a" / "prompts.txt")))
    caplog.clear()
    set_up(settled_run(stage_run("b", "a", rehearsal=rehearsal)))
    assert left not in caplog.text
    assert len([*(runs / "a" / "own_text").glob("*.json")]) == 2  # without prompts, and with them
    (runs / "a" / "prompts.txt").unlink()
    (runs / "a" / "prompts.txt").symlink_to(secret)
    set_up(settled_run(stage_run("b", "a", rehearsal=rehearsal)))
    assert left in caplog.text


def test_a_missing_stage_is_not_asked_of_the_hub(stage_run, tmp_path, monkeypatch):
    """Its name there is the sidecar's maker's; what the user has fetched is taken."""
    train(stage_run("a"))
    (record,) = [record_stage(locate(tmp_path / "runs" / "a"), "fold", [], LoadOptions())]
    record["place"] = "someone/a"
    child = tmp_path / "elsewhere" / "b"
    child.mkdir(parents=True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=r"and you trust that: hf download someone/a\.$"):
        find_parent(record, child)
    cached = tmp_path / "cache" / "models--someone--a"
    shutil.copytree(locate(tmp_path / "runs" / "a").path, cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    assert find_parent(record, child).path == str(cached / "snapshots" / "0123")


@pytest.mark.parametrize("way", ["one", "branch", "fold"])
def test_a_stage_goes_on_bit_for_bit_after_kill(stage_run, tmp_path, way):
    """Real processes are killed; the run that goes on is the one that never stopped."""
    over = {"preset": "retain", "rehearsal": {"num_sequences": 6, "share": 0.3}}
    steps = {"max_steps": 10, "save_steps": 1, "eval_steps": 4}
    train(stage_run("a", training={"max_steps": 4}, **over))
    over["continue_by"] = way
    straight = train(stage_run("straight", "a", training=dict(steps), **over))
    for step, delay in ((1, 0.0), (4, 0.01)):
        run = stage_run("killed", "a", training=dict(steps), **over)
        train_until_killed(run, f"checkpoint-{step}", delay)
    resumed = train(stage_run("killed", "a", training=dict(steps), **over))
    assert_same_run(straight.output_dir, resumed.output_dir)
    assert losses_of(resumed.history) == losses_of(straight.history)


def test_a_run_goes_on_after_the_stage_it_began_with(stage_run, tmp_path):
    train(stage_run("a"))
    train(stage_run("b", "a", training={"max_steps": 4}))
    train(stage_run("other", training={"seed": 3}))
    with pytest.raises(CheckpointError, match=r"after the stage a .*from other .*another one"):
        train(stage_run("b", "other", training={"max_steps": 4}))


def test_what_inspect_and_the_card_say(stage_run, tmp_path, capsys):
    train(stage_run("a"))
    train(stage_run("b", "a", continue_by="fold"))
    runs = tmp_path / "runs"
    load_model(runs / "b")[0].save_sidecar(runs / "exported")
    assert "| learned after | a by fold |" in (runs / "exported" / "README.md").read_text()
    inspect([str(runs / "exported")])
    shown = capsys.readouterr().out
    assert "learned after: base > a > this" in shown and "continued by fold" in shown
    assert "a is folded into the base: that is what it is at alpha 0" in shown
    (parent,) = inspect_folder(runs / "exported").parents
    assert parent["here"]
    with pytest.raises(ModelError, match="stage 'a' folded in"):
        export(load_model(runs / "b")[0], tmp_path / "lora", "lora")
    with pytest.raises(CheckpointError, match=r"stage 'a' folded in \(load_model makes"):
        load_sidecar(base_of(tmp_path), runs / "exported")
    shutil.rmtree(runs / "a")
    inspect([str(runs / "exported")])
    assert "(not there)" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="'a', which is missing"):
        load_model(runs / "exported")


def test_a_strangers_parents_are_data(stage_run, tmp_path):
    """A record is checked by its schema and its digest; a place is no address."""
    train(stage_run("a"))
    train(stage_run("b", "a", continue_by="fold"))
    load_model(tmp_path / "runs" / "b")[0].save_sidecar(tmp_path / "runs" / "copy")
    path = tmp_path / "runs" / "copy" / "sidecar_config.json"
    (tmp_path / "runs" / "copy" / "checksums.json").unlink()
    written = json.loads(path.read_text())

    def edited(**values):
        path.write_text(json.dumps(written | {"parents": [written["parents"][0] | values]}))

    for values, match in (
        ({"name": "../up"}, "parents.*name"),
        ({"digest": "0" * 63}, "SHA-256"),
        ({"dial": 2.0}, "dial"),
        ({"digest": "0" * 64}, "settings are not those"),
        ({"place": "http://x/a"}, "which is missing: it was looked for in nowhere"),
    ):
        edited(**values)
        with pytest.raises(CheckpointError, match=match):
            load_model(tmp_path / "runs" / "copy")
    edited(place=str(tmp_path / "runs" / "a"))  # It may have moved.
    load_model(tmp_path / "runs" / "copy")


def test_joint_learns_all_from_the_base(stage_run, tmp_path):
    train(stage_run("a"))
    with pytest.raises(ConfigError, match=r"names outside of its folder: .*continue_trust"):
        settled_run(stage_run("b", "a", continue_by="joint"))
    ready = set_up(settled_run(stage_run("b", "a", continue_by="joint", continue_trust=True)))
    assert [source.name for source in ready.run.data.train] == ["third", "new"]
    assert [*ready.meter.learn] == ["third", "new"] and [*ready.references] == ["base"]
    assert settled_run(ready.run).data == ready.run.data
    with torch.no_grad():
        assert torch.equal(logits(ready.model), logits(base_of(tmp_path)))
    (tmp_path / "runs" / "a" / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="what a was trained on"):
        train(stage_run("b2", "a", continue_by="joint", continue_trust=True))


@pytest.mark.parametrize("way", ["branch", "fold"])
def test_joint_after_other_ways_is_a_model_of_the_base_alone(stage_run, tmp_path, way):
    short = {"max_steps": 2}
    train(stage_run("a", training=short))
    train(stage_run("b", "a", continue_by=way, training=short))
    joint = {"continue_by": "joint", "continue_trust": True}
    trained = train(stage_run("c", "b", training=short, **joint)).model
    c = load_model(tmp_path / "runs" / "c")[0]
    assert torch.equal(logits(c), logits(trained)) and c.config.parents == []
    c.set_alpha(0)
    assert torch.equal(logits(c), logits(base_of(tmp_path)))
    again = settled_run(stage_run("d", "c", **joint))
    assert [source.name for source in again.data.train] == ["third", "new"]


def test_a_stage_that_is_gone_is_told(stage_run, tmp_path, caplog):
    """Of three, the first is gone: the model is whole, and the others are measured."""
    train(stage_run("a"))
    train(stage_run("b", "a"))
    shutil.rmtree(tmp_path / "runs" / "a")
    with caplog.at_level("WARNING", "controlllm"):
        ready = set_up(settled_run(stage_run("c", "b")))
    assert "'a' is neither measured nor rehearsed" in caplog.text
    assert list(ready.references) == ["base", "b"]
    assert [parent["name"] for parent in ready.model.config.parents] == ["a", "b"]


def test_a_stages_config_that_cannot_be_read_is_told(stage_run, tmp_path, caplog):
    """It may be of another version; its run is measured by what else is known of it."""
    train(stage_run("a", training={"max_steps": 2}))
    config = tmp_path / "runs" / "a" / "config.yaml"
    config.write_text(config.read_text().replace("  max_length:", "  longest:"))
    rehearsal = {"num_sequences": 4, "share": 0.25}
    ready = set_up(settled_run(stage_run("b", "a", rehearsal=rehearsal)))
    assert "data.longest is not known" in caplog.text
    assert [*ready.references] == ["base", "a"] and [*ready.meter.retain] == ["old"]


def test_own_text_of_each_stage_is_measured(stage_run, tmp_path):
    """Where no old data is named: on it the rise is the KL from the stage that wrote it."""
    over = {"own_text": {"num_sequences": 8}}
    train(stage_run("a", **over))
    third = [{"path": str(tmp_path / "third_heldout.txt"), "name": "third"}]
    data = {"train": [{"path": str(tmp_path / "third.txt")}], "learn": third, "retain": []}
    training = {"max_forgetting": {"base": 9.0, "a": 9.0}}
    result = train(stage_run("b", "a", data=data, training=training, **over))
    first = result.history[0]
    assert first["retain/a/own_text/kl"] == first["retain/a/own_text/forgetting"] == 0
    assert first["retain/own_text/kl"] > 0
    assert {"own_text", "a/own_text"} <= result.certificates.keys()
    assert list((tmp_path / "runs" / "a" / "own_text").glob("*.json"))
    assert result.best.by_stage.keys() == {"base", "a"}


def test_a_calibrated_sidecar_is_its_runs(stage_run, tmp_path):
    """What was measured and written in the run is found from a sidecar that lies in it."""
    train(stage_run("a"))
    model = load_model(tmp_path / "runs" / "a")[0]
    model.set_alpha(0.4)
    model.save_sidecar(tmp_path / "runs" / "a" / "calibrated")
    ready = set_up(settled_run(stage_run("b", "a/calibrated")))
    assert list(ready.references) == ["base", "a"] and "a/new" in ready.meter.retain
    assert ready.model.config.parents[0]["dial"] == 0.4
    assert ready.model.expansion.dial == 0.4


def test_a_stage_stands_at_the_recorded_dial_by_layer(stage_run, tmp_path):
    """Whatever its dial was turned to afterwards."""
    train(stage_run("a", training={"max_steps": 2}))
    side = tmp_path / "runs" / "a" / "calibrated"
    model = load_model(tmp_path / "runs" / "a")[0]
    model.set_alpha({1: 0.4})
    stood = logits(model)
    model.save_sidecar(side)
    train(stage_run("b", "a/calibrated", training={"max_steps": 2}))
    model.set_alpha(0.2)
    model.save_sidecar(side, overwrite=True)
    ready = set_up(settled_run(stage_run("c", "b")))
    with ready.references["a"].active() as stage, evaluating(stage):
        assert torch.equal(logits(stage), stood)


@pytest.mark.parametrize("way", ["one", "fold"])
def test_both_loops_go_on_alike(stage_run, tmp_path, way):
    train(stage_run("a"))
    over = {"continue_by": way, "rehearsal": {"num_sequences": 6, "share": 0.3}}
    native = train(stage_run("native", "a", **over)).history
    hf = train(stage_run("hf", "a", training={"backend": "hf"}, **over)).history
    for one, other in zip(native, hf, strict=True):
        for name in {"train/loss", "train/rehearsal", "retain/a/new/forgetting"} & one.keys():
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6)


def test_a_stage_is_not_overwritten(stage_run, tmp_path):
    """Neither the one that a run goes on from, nor one before it."""
    train(stage_run("a"))
    train(stage_run("b", "a"))
    places = [locate(tmp_path / "runs" / name) for name in "ab"]
    for name, after in (("a", "a"), ("a", "b"), ("b", "b")):
        run = stage_run(name, after, training={"overwrite_output_dir": True})
        with pytest.raises(
            ConfigError, match=r"overwrite_output_dir=true would remove .*checkpoint"
        ):
            train(run)
    with pytest.raises(ConfigError, match="is the folder of the run that this one goes on from"):
        train(stage_run("a", "a"))
    assert [locate(tmp_path / "runs" / name) for name in "ab"] == places


def test_a_folder_is_not_asked_for_on_the_hub(stage_run, tmp_path, monkeypatch):
    """A folder called as a model on the Hub could be is recorded as a folder."""
    train(stage_run("a"))
    monkeypatch.chdir(tmp_path)
    load_model(tmp_path / "runs" / "a")[0].save_sidecar("my/side")
    record = record_stage(locate("my/side"), "branch", [], LoadOptions())
    assert record["place"] == "./my/side" and record["name"] == "side"
    assert find_parent(record, tmp_path / "runs" / "b").path == "my/side"
    shutil.move("my", "gone")
    Path("my/side").mkdir(parents=True)  # empty
    with pytest.raises(CheckpointError, match=r"in my/side, runs/side.*one of these places\.$"):
        find_parent(record, Path("runs/b"))
    shutil.copytree("gone/side", "runs/side")
    assert find_parent(record, Path("runs/b")).path == "runs/side"


def test_what_is_not_there_is_told(stage_run, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = stage_run("b", "a")
    run = replace(run, continue_from="runs/mistyped")
    with pytest.raises(
        ConfigError, match=r"'runs/mistyped' is no folder here \(looked for in .*\)"
    ):
        settled_run(run)


def test_a_bound_is_rounded_up():
    """0.0273 is not at most 0.027."""
    values = {"loss": 1.0, "forgetting": 0.1, "kl": 0.02}
    told = [
        describe_sets({f"retain/own_text/{k}": v for k, v in {**values, "kl_upper": bound}.items()})
        for bound in (0.0273, 0.027, 3e-9, float("inf"))
    ]
    assert [line.rpartition(" <= ")[2] for line in told] == ["0.028)", "0.027)", "0.000)", "inf)"]
