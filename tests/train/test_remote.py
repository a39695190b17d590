"""A run whose checkpoints are copied to a WebHDFS server goes on from there, bit for bit."""

import shutil
import warnings

import pytest
import yaml
from tests.train.helpers import losses_of
from tests.train.test_resume import RETAIN, Stopped, assert_same_run, records, stop_after

from controlllm.checkpoint import load_model, newest_checkpoint
from controlllm.checkpoint.mirror import upload
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.train import train


@pytest.fixture
def stopped_run(run_config, loaded, hdfs, tmp_path, monkeypatch):
    """`stopped_run(step, **over)`: a run with a copy on HDFS that dies after `step` steps.

    Returns the settings with which it goes on.
    """

    def stop(step, **over):
        training = {"output_dir": str(tmp_path / "run"), "remote_dir": hdfs.address + "runs/seven"}
        over = over | {"training": training | over.get("training", {})}
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_after(patch, step)
            train(run_config(**over), loaded())
        return over

    return stop


@pytest.mark.parametrize("over", [RETAIN, {"method": "full", "training": {"backend": "hf"}}])
def test_resumed_from_elsewhere_equals_straight(
    run_config, loaded, hdfs, tmp_path, stopped_run, over
):
    """The machine is lost after step 5, with its disk; another one goes on from step 4."""
    training = over.get("training", {}) | {"output_dir": str(tmp_path / "straight")}
    straight = train(run_config(**over | {"training": training}), loaded())
    again = stopped_run(5, **over)
    shutil.rmtree(tmp_path / "run")
    resumed = train(run_config(**again), loaded())
    assert_same_run(straight.output_dir, resumed.output_dir)
    assert losses_of(resumed.history) == losses_of(straight.history)
    assert records(resumed.output_dir) == records(straight.output_dir)
    assert resumed.best == straight.best
    # The copy is a run folder in its own right.
    there = hdfs.folder / "runs" / "seven"
    assert_same_run(straight.output_dir, there)
    assert records(there) == records(straight.output_dir)
    beside = {p.name for p in resumed.output_dir.iterdir() if "checkpoint-" not in p.name}
    assert {p.name for p in there.iterdir() if "checkpoint-" not in p.name} == beside


def test_a_finished_run_elsewhere_is_loaded(run_config, loaded, hdfs, tmp_path, pretrained_pico):
    pretrained_pico.save_pretrained(tmp_path / "base")
    loaded()[1].save_pretrained(tmp_path / "base")
    run = run_config(
        model={"model_name_or_path": str(tmp_path / "base")},
        training={"remote_dir": hdfs.address + "runs/seven"},
    )
    result = train(run)
    here, there = load_model(result.output_dir), load_model(hdfs.address + "runs/seven")
    for (name, a), (_, b) in zip(
        here[0].named_parameters(), there[0].named_parameters(), strict=True
    ):
        assert a.equal(b), name
    assert there[1].chat_template == here[1].chat_template


def test_the_newer_of_both_places_is_resumed(run_config, loaded, hdfs, tmp_path, stopped_run):
    """Another machine went on in the meantime; this one still has an old checkpoint."""
    again = stopped_run(3)
    shutil.copytree(tmp_path / "run", tmp_path / "old")
    train(run_config(**again), loaded())
    shutil.rmtree(tmp_path / "run")
    shutil.move(tmp_path / "old", tmp_path / "run")
    assert newest_checkpoint(tmp_path / "run").name == "checkpoint-3"
    result = train(run_config(**again), loaded())
    assert result.stopped_because == "max_steps"
    assert newest_checkpoint(tmp_path / "run").name == "checkpoint-6"


def test_a_copy_that_fails_stops_the_run_and_is_made_up_for(run_config, loaded, hdfs, tmp_path):
    """The local checkpoint is there, the same command goes on with it and copies it."""
    straight = train(run_config(training={"output_dir": str(tmp_path / "straight")}), loaded())
    training = {"remote_dir": hdfs.address + "runs/seven"}
    hdfs.faults.cut_write = 150_000
    with pytest.raises(CheckpointError, match=r"checkpoint-\d is saved, but .*remote_dir=null"):
        train(run_config(training=training), loaded())
    stopped_at = newest_checkpoint(tmp_path / "run")
    assert stopped_at is not None
    hdfs.faults.clear()
    resumed = train(run_config(training=training), loaded())
    assert_same_run(straight.output_dir, resumed.output_dir)
    here = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    there = {path.name for path in (hdfs.folder / "runs/seven").glob("checkpoint-*")}
    assert there == here and stopped_at.name in there


def test_after_a_copy_that_broke_off_the_earlier_one_is_resumed(run_config, loaded, hdfs, tmp_path):
    """The data node dies in the middle of a copy, and then the machine is lost, too."""
    straight = train(run_config(training={"output_dir": str(tmp_path / "straight")}), loaded())
    training = {"remote_dir": hdfs.address + "runs/seven"}
    run = run_config(training=training)
    with pytest.MonkeyPatch.context() as patch:
        send = upload.Uploader.send

        def send_half(self, checkpoint):
            if checkpoint.name == "checkpoint-4":
                hdfs.faults.cut_write = hdfs.written + 20_000
            send(self, checkpoint)

        patch.setattr(upload.Uploader, "send", send_half)
        with pytest.raises(CheckpointError, match="checkpoint-4"):
            train(run, loaded())
    hdfs.faults.clear()
    assert (hdfs.folder / "runs/seven/checkpoint-4").is_dir()
    shutil.rmtree(tmp_path / "run")
    with pytest.warns(UserWarning, match="Passing over .*checkpoint-4"):
        resumed = train(run_config(training=training), loaded())
    assert_same_run(straight.output_dir, resumed.output_dir)


def test_a_server_in_trouble_is_told_before_training(run_config, loaded, hdfs, tmp_path):
    training = {"remote_dir": hdfs.address + "runs/seven", "remote_timeout": 1.0}
    hdfs.faults.standby = True
    with pytest.raises(CheckpointError, match="state standby"):
        train(run_config(training=training), loaded())
    hdfs.faults.clear()
    hdfs.faults.hang = "data"
    with pytest.raises(CheckpointError, match=r"no answer within 1 s|timed out"):
        train(run_config(training=training), loaded())
    assert newest_checkpoint(tmp_path / "run") is None


def test_another_run_elsewhere_is_not_touched(run_config, loaded, hdfs, tmp_path, stopped_run):
    again = stopped_run(3)
    before = sorted((hdfs.folder / "runs/seven").rglob("*"))
    training = again["training"] | {"output_dir": str(tmp_path / "other")}
    with pytest.raises(ConfigError, match=r"runs/seven holds a run .*seed was 42, is 7"):
        train(run_config(training=training | {"seed": 7}), loaded())
    with pytest.raises(ConfigError, match="holds checkpoint-3 and there is nothing to resume"):
        train(run_config(training=training | {"resume_from_checkpoint": "never"}), loaded())
    assert sorted((hdfs.folder / "runs/seven").rglob("*")) == before
    fresh = training | {"overwrite_output_dir": True, "seed": 7, "max_steps": 1}
    train(run_config(training=fresh), loaded())
    there = hdfs.folder / "runs/seven"
    assert [path.name for path in there.glob("checkpoint-*")] == ["checkpoint-1"]
    assert yaml.safe_load((there / "config.yaml").read_text())["training"]["seed"] == 7


def test_a_checkpoint_named_by_its_address(run_config, loaded, hdfs, tmp_path, stopped_run):
    stopped_run(5)
    address = hdfs.address + "runs/seven"
    straight = train(run_config(training={"output_dir": str(tmp_path / "straight")}), loaded())
    training = {"output_dir": str(tmp_path / "b"), "resume_from_checkpoint": address}
    with pytest.raises(ConfigError, match="is not a checkpoint; name one"):
        train(run_config(training=training), loaded())
    training["resume_from_checkpoint"] = f"{address}/checkpoint-2"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        resumed = train(run_config(training=training), loaded())
    assert_same_run(straight.output_dir, resumed.output_dir)
    training |= {"output_dir": str(tmp_path / "c"), "remote_dir": address}
    with pytest.raises(ConfigError, match="checkpoint-4, which is not the checkpoint to resume"):
        train(run_config(training=training), loaded())


def test_best_is_kept_elsewhere(run_config, loaded, hdfs):
    """Limits and marks hold there as on the disk."""
    training = {"remote_dir": hdfs.address + "runs/seven", "save_total_limit": 1, "save_steps": 1}
    result = train(run_config(training=training), loaded())
    there = hdfs.folder / "runs/seven"
    names = {path.name for path in there.glob("checkpoint-*")}
    assert names == {f"checkpoint-{result.best.step}", "checkpoint-6"}
    assert (there / "best.json").read_bytes() == (result.output_dir / "best.json").read_bytes()
