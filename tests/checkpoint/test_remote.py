"""Checkpoints on a WebHDFS server, over real sockets: up, down, and what may go wrong."""

import json
import warnings

import pytest
import torch
from tests.checkpoint.test_state import make_state

from controlllm.checkpoint import (
    Kind,
    LoadOptions,
    export,
    load_checkpoint,
    load_model,
    locate,
    mark_best,
    save_checkpoint,
)
from controlllm.checkpoint.mirror.copies import local_copy
from controlllm.checkpoint.mirror.fetch import fetch_checkpoint, fetch_files, fetch_newest
from controlllm.checkpoint.mirror.remote import RemoteRun
from controlllm.checkpoint.mirror.upload import Uploader
from controlllm.common.errors import CheckpointError
from controlllm.expansion import ExpansionConfig, expand

SOON = 1.0


@pytest.fixture
def remote(hdfs):
    return RemoteRun(hdfs.address + "runs/seven")


@pytest.fixture
def run(tmp_path):
    """A local run folder with the files that lie beside checkpoints."""
    folder = tmp_path / "run"
    (folder / "rehearsal").mkdir(parents=True)
    (folder / "config.yaml").write_text("preset: null\n")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "rehearsal" / "abc.json").write_text("{}")
    (folder / ".half.writing-x-1-0").write_text("not whole")
    return folder


def send(remote, run, *steps, limit=None):
    uploader = Uploader(remote, limit)
    for step in steps:
        uploader.send(save_checkpoint(run, make_state(step, size=3000)))
    return uploader


def tree(folder):
    """Relative path to content."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_the_remote_folder_alone_is_the_run(hdfs, remote, run, tmp_path):
    uploader = send(remote, run, 3)
    mark_best(run, 3, {"learn_loss": 1.0})
    uploader.send(run / "checkpoint-3")
    here = tree(run)
    del here[".half.writing-x-1-0"]
    assert tree(hdfs.folder / "runs" / "seven") == here

    other = tmp_path / "other"
    fetch_files(remote, other)
    found = fetch_newest(remote, other)
    assert found == other / "checkpoint-3"
    assert tree(other) == here
    state = load_checkpoint(found)
    assert torch.equal(state.tensors["w"], make_state(3, size=3000).tensors["w"])


def test_the_manifest_goes_last_and_nothing_goes_twice(hdfs, remote, run):
    uploader = send(remote, run, 3)
    done = [(r.op, r.path) for r in hdfs.requests if r.op in ("CREATE", "RENAME")]
    inside = [(op, path.rpartition("/")[2]) for op, path in done if "checkpoint-3" in path]
    assert inside[-1] == ("RENAME", ".manifest.json.copying")
    assert len({name for op, name in inside if op == "CREATE"}) == 6
    hdfs.requests.clear()
    uploader.send(run / "checkpoint-3")
    assert hdfs.ops("data").count("CREATE") == 0
    Uploader(remote).send(run / "checkpoint-3")  # Another process knows only what is there.
    again = [r.path for r in hdfs.requests if (r.node, r.op) == ("data", "CREATE")]
    assert again and not any("checkpoint" in path for path in again)


def test_another_checkpoint_of_the_same_step_replaces_the_old_one(hdfs, remote, run):
    send(remote, run, 3)
    state = make_state(3, size=3000)
    state.extra = {"changed": True}
    Uploader(remote).send(save_checkpoint(run, state))
    assert tree(hdfs.folder / "runs/seven/checkpoint-3") == tree(run / "checkpoint-3")


def test_the_limit_holds_there_too(hdfs, remote, run):
    uploader = send(remote, run, 1, 2)
    mark_best(run, 1, {"learn_loss": 1.0})
    uploader.limit = 2
    for step in (3, 4):
        uploader.send(save_checkpoint(run, make_state(step)))
    assert remote.checkpoints() == ["checkpoint-1", "checkpoint-4"]
    assert remote.best() == "checkpoint-1"


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.999])
def test_a_copy_that_breaks_off_is_no_checkpoint(hdfs, remote, run, tmp_path, share):
    """The data node dies after a share of the checkpoint's bytes; 0.999 is within its manifest."""
    send(remote, run, 3)
    size = sum(map(len, tree(run / "checkpoint-3").values()))
    assert 0.999 * size > size - (run / "checkpoint-3" / "manifest.json").stat().st_size
    hdfs.faults.cut_write = hdfs.written + int(share * size)
    with pytest.raises(CheckpointError, match=r"checkpoint-4 is saved, but .*run the same command"):
        send(remote, run, 4)
    assert load_checkpoint(run / "checkpoint-4").step == 4
    hdfs.faults.clear()
    assert remote.checkpoints() == ["checkpoint-3"]
    with pytest.warns(UserWarning, match=r"checkpoint-4 .*not copied completely"):
        assert fetch_newest(remote, tmp_path / "other").name == "checkpoint-3"
    Uploader(remote).send(run / "checkpoint-4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fetch_newest(remote, tmp_path / "other").name == "checkpoint-4"


def test_what_a_broken_copy_left_is_cleared_away(hdfs, remote, run):
    send(remote, run, 3)
    hdfs.faults.cut_write = hdfs.written + 10_000
    with pytest.raises(CheckpointError):
        send(remote, run, 4)
    assert (hdfs.folder / "runs/seven/checkpoint-4").is_dir()
    hdfs.faults.clear()
    send(remote, run, 5)
    assert remote.checkpoints(whole=False) == ["checkpoint-3", "checkpoint-5"]


def test_a_short_break_is_got_over(hdfs, remote, run, caplog):
    """The connection breaks twice; the file is sent anew."""
    hdfs.faults.cut_write, hdfs.faults.times = 10_000, 2
    with caplog.at_level("WARNING"):
        send(remote, run, 3)
    assert caplog.text.count("trying again") == 2
    assert tree(hdfs.folder / "runs/seven/checkpoint-3") == tree(run / "checkpoint-3")


def damage_size(folder):
    (folder / "state.safetensors").write_bytes(b"short")


def damage_content(folder):
    content = bytearray((folder / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "state.safetensors").write_bytes(content)


def damage_file_gone(folder):
    (folder / "state.json").unlink()


def damage_manifest(folder):
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [damage_size, damage_content, damage_file_gone, damage_manifest])
def test_a_broken_one_is_named_and_passed_over(hdfs, remote, run, tmp_path, damage):
    send(remote, run, 3, 4)
    damage(hdfs.folder / "runs/seven/checkpoint-4")
    with pytest.warns(UserWarning, match="Passing over .*checkpoint-4"):
        found = fetch_newest(remote, tmp_path / "other")
    assert found.name == "checkpoint-3"
    assert not (tmp_path / "other" / "checkpoint-4").exists()
    with pytest.raises(CheckpointError, match="checkpoint-4"):
        fetch_checkpoint(remote, "checkpoint-4", tmp_path / "other")


def test_a_server_in_trouble_is_no_broken_checkpoint(hdfs, remote, run, tmp_path):
    """Resuming an older one because of a short outage would throw work away."""
    send(remote, run, 3, 4)
    hdfs.faults.cut_read = 100
    with pytest.raises(CheckpointError, match="cannot be used"):
        fetch_newest(remote, tmp_path / "other")
    assert not (tmp_path / "other" / "checkpoint-3").exists()
    assert list((tmp_path / "other").glob(".*")) == []


def test_the_best_one_comes_along(remote, run, tmp_path):
    uploader = send(remote, run, 3)
    mark_best(run, 3, {"learn_loss": 1.0})
    uploader.send(save_checkpoint(run, make_state(4)))
    fetch_files(remote, tmp_path / "other")
    fetch_newest(remote, tmp_path / "other")
    assert (tmp_path / "other" / "checkpoint-3" / "manifest.json").is_file()


def test_a_lost_best_one_is_told(hdfs, remote, run, tmp_path):
    uploader = send(remote, run, 3)
    mark_best(run, 3, {"learn_loss": 1.0})
    uploader.send(save_checkpoint(run, make_state(4)))
    damage_content(hdfs.folder / "runs/seven/checkpoint-3")
    fetch_files(remote, tmp_path / "other")
    with pytest.warns(UserWarning, match="best checkpoint is lost"):
        fetch_newest(remote, tmp_path / "other")
    assert not (tmp_path / "other" / "best.json").exists()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"standby": True}, "state standby"),
        ({"forbidden": {"/runs"}}, "Permission denied"),
        ({"hang": "name"}, "no answer within 1 s|timed out"),
        ({"hang": "data"}, "no answer within 1 s|timed out"),
        ({"disk_bytes": 0}, "minReplication"),
        ({"refuse": True}, "refused"),
    ],
)
def test_what_the_server_says_is_told(hdfs, run, fault, told):
    remote = RemoteRun(hdfs.address + "runs/seven", timeout=SOON)
    for name, value in fault.items():
        setattr(hdfs.faults, name, value)
    with pytest.raises(CheckpointError, match=told) as caught:
        send(remote, run, 3)
    assert remote.address in str(caught.value)
    assert load_checkpoint(run / "checkpoint-3").step == 3


def test_a_server_that_is_not_there_is_told_at_the_start(hdfs):
    address = hdfs.address + "runs"
    hdfs.__exit__(None, None, None)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        RemoteRun(address, timeout=SOON)


# Loading from an address.


@pytest.fixture
def sidecar(hdfs, tmp_path, pico_llama, pico_tokenizer):
    """Base and sidecar on the server; their addresses."""
    base = pico_llama()
    for folder, model in (("base", base), ("sidecar", None)):
        if model is not None:
            model.save_pretrained(hdfs.folder / folder)
            pico_tokenizer.save_pretrained(hdfs.folder / folder)
    model = expand(base, ExpansionConfig(num_blocks=1))
    export(model, hdfs.folder / "sidecar", form="sidecar", tokenizer=pico_tokenizer)
    return hdfs.address + "base", hdfs.address + "sidecar"


def test_models_elsewhere_are_loaded(sidecar):
    base, expanded = sidecar
    plain, tokenizer = load_model(base)
    model, _ = load_model(expanded, LoadOptions(base=base))
    ids = torch.tensor([tokenizer("the cat").input_ids])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert locate(expanded).kind is Kind.SIDECAR


def test_a_run_elsewhere_is_its_best_checkpoint(hdfs, remote, run):
    address = hdfs.address + "runs/seven"
    uploader = send(remote, run, 3, 4)
    assert local_copy(address).name == "checkpoint-4"
    mark_best(run, 3, {"learn_loss": 1.0})
    uploader.send_files(run)
    assert local_copy(address).name == "checkpoint-3"
    assert local_copy(address + "/best").name == "checkpoint-3"
    assert local_copy(address + "/checkpoint-4").name == "checkpoint-4"
    assert locate(address).kind is Kind.CHECKPOINT


def test_a_copy_is_fetched_once_and_never_stale(hdfs, remote, run):
    address = hdfs.address + "runs/seven"
    send(remote, run, 3)
    local_copy(address)
    hdfs.requests.clear()
    local_copy(address)
    opened = {r.path for r in hdfs.requests if (r.node, r.op) == ("data", "OPEN")}
    assert not any(path.endswith(".safetensors") for path in opened)
    state = make_state(3)
    state.tensors["w"] += 1
    Uploader(remote).send(save_checkpoint(run, state))
    (hdfs.folder / "runs/seven/metrics.jsonl").unlink()
    found = local_copy(address)
    assert torch.equal(load_checkpoint(found).tensors["w"], state.tensors["w"])
    assert not (found.parent / "metrics.jsonl").exists()


def test_nothing_to_load_is_told(hdfs, remote, run):
    with pytest.raises(CheckpointError, match="holds no model"):
        load_model(hdfs.address + "nowhere")
    send(remote, run, 3)
    with pytest.raises(CheckpointError, match="checkpoint-9"):
        load_model(hdfs.address + "runs/seven/checkpoint-9")
    (hdfs.folder / "runs/seven/best.json").write_text(json.dumps([1]))
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        load_model(hdfs.address + "runs/seven")
