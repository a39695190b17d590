"""Issue table 1: what a stranger made (a folder, a YAML file, a server) can only be read."""

import ast
import copy
import io
import json
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.checkpoint.test_state import make_state
from tests.trust.config_helpers import evaluated, refused, run_folder, trained, yaml_file
from tests.trust.schemas_helpers import adapted_on, edit, expanded_on, logits_of, write_base
from tests.trust.sources_helpers import BOMBS, Trap, read_bombs
from tests.webhdfs import WebHdfs
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from controlllm.checkpoint import (
    LoadOptions,
    best_checkpoint,
    export,
    find_tokenizer,
    inspect_folder,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from controlllm.checkpoint.mirror.copies import local_copy
from controlllm.checkpoint.mirror.fetch import fetch_files, fetch_newest
from controlllm.checkpoint.mirror.remote import RemoteRun
from controlllm.checkpoint.mirror.upload import Uploader
from controlllm.checkpoint.training.manifest import write_manifest
from controlllm.cli import main
from controlllm.common.errors import CheckpointError, ConfigError, DataError
from controlllm.common.storage import remote
from controlllm.common.storage.lock import make_once
from controlllm.common.storage.remote import open_filesystem
from controlllm.common.text.secrets import redacted
from controlllm.data import DataConfig, SourceConfig, TrainLoader
from controlllm.data.cache.store import TokenStore
from controlllm.data.cache.whole_source import Selection
from controlllm.data.examples.render import Renderer
from controlllm.data.loader.plugins import load_plugins
from controlllm.evaluate import format_table
from controlllm.expansion import ExpansionConfig, expand
from controlllm.expansion.files.card import model_card
from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.inference import Chat
from controlllm.inference.generate import prompt_ids
from controlllm.train import RunConfig
from controlllm.train.record.folder import _changes as folder_changes
from controlllm.train.record.folder import open_run_folder
from controlllm.train.record.loggers import LOGGERS, LoggerContext

Cli = Callable[..., tuple[int, str, str]]


# ---- 1: best.json and manifests name nothing outside the run's own folder ----


@pytest.fixture
def hostile(hdfs, tmp_path):
    """A run elsewhere whose best.json names a folder of the user, and which serves that path."""
    victim = tmp_path / "home" / ".ssh"
    victim.mkdir(parents=True)
    (victim / "id_ed25519").write_text("mine")
    run = hdfs.folder / "runs" / "seven"
    save_checkpoint(run, make_state(3))
    saved = save_checkpoint(tmp_path / "made", make_state(4))
    served = run.joinpath(*victim.parts[1:])
    served.parent.mkdir(parents=True)
    saved.rename(served)
    (run / "best.json").write_text(json.dumps({"checkpoint": str(victim)}))
    return hdfs.address + "runs/seven", victim


def test_best_json_elsewhere_names_no_folder_of_the_user(hostile, tmp_path):
    address, victim = hostile
    with pytest.raises(CheckpointError, match=r"best\.json is damaged: it names no checkpoint-N"):
        local_copy(address)
    remote = RemoteRun(address)
    fetch_files(remote, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"best\.json is damaged: it names no checkpoint-N"):
        fetch_newest(remote, tmp_path / "run")
    assert {path.name: path.read_text() for path in victim.iterdir()} == {"id_ed25519": "mine"}


@pytest.mark.parametrize("mark", ["../b/checkpoint-3", "checkpoint-3\n", "", 3, None, ["x"], {}])
def test_best_json_here_names_a_checkpoint_of_its_run(tmp_path, mark):
    save_checkpoint(tmp_path / "a", make_state(3))
    save_checkpoint(tmp_path / "b", make_state(3))
    (tmp_path / "a" / "best.json").write_text(json.dumps({"checkpoint": mark}))
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        best_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("name", ["../state.json", "/state.json", "a\\b.json", ".state.json", ""])
def test_a_manifest_lists_plain_names_only(hdfs, tmp_path, name):
    saved = save_checkpoint(hdfs.folder / "runs" / "seven", make_state(3))
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"]["state.json"]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"manifest\.json: .* must be a plain file name"):
        local_copy(hdfs.address + "runs/seven/checkpoint-3")


# ---- 2: no file makes a parser import a module ----


TRAPPED = {"class_path": "stranger_module.Trap", "init_args": {}}


@pytest.fixture
def stranger_module(tmp_path, monkeypatch):
    """A module that leaves a file behind when anybody imports it."""
    mark = tmp_path / "imported"
    (tmp_path / "modules").mkdir()
    text = f"open({str(mark)!r}, 'w').close()\nclass Trap: pass\n"
    (tmp_path / "modules" / "stranger_module.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return mark


def test_values_of_any_type_name_no_class_to_import(stranger_module, tmp_path):
    source = {"path": "a.txt", "where": {"x": TRAPPED}, "storage_options": {"client": TRAPPED}}
    file = yaml_file(tmp_path / "a.yaml", {"data": {"learn": [source]}})
    folder = run_folder(tmp_path / "run", {"learn": [source]})
    assert evaluated("m", "--config", file).data.learn[0].where == {"x": [TRAPPED]}
    assert evaluated(folder).data.learn[0].storage_options == {}
    assert evaluated(folder, "--trust_config").data.learn[0].storage_options == {"client": TRAPPED}
    evaluated("m", "--load.storage_options", json.dumps(TRAPPED))
    evaluated("m", "--data.learn", json.dumps([source]))
    assert not stranger_module.exists()


@pytest.mark.slow
def test_processes_take_no_module_from_the_working_folder(tmp_path):
    """`json.py` beside the user's files is not what a rank, or a process of its, imports."""
    mark = tmp_path / "imported"
    for name in ("json", "yaml", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    words = ["train", "--nproc", "2", "--model.model_name_or_path", "./nowhere"]
    words += ["--data.train", "[{path: nowhere.txt}]", "--model.device", "cpu"]
    script = f"from controlllm.cli import main; raise SystemExit(main({words!r}))"
    safe = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **safe},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "nowhere" in done.stderr, done.stderr
    assert not mark.exists()


# ---- 3: addresses, options and cache folders of somebody's run folder need a flag ----


@pytest.mark.parametrize(
    "address",
    [
        "reference://x",
        "simplecache::https://host/a.jsonl",
        "simplecache::/a.jsonl",
        "zip://a.jsonl::https://host/a.zip",
        "github://owner:repo@main/a.jsonl",
        "jupyter://host/a",
        "nosuch://host/a",
    ],
)
def test_schemes_are_on_a_list(address):
    with pytest.raises(DataError, match=r"allowed: .*webhdfs.*allow_scheme"):
        open_filesystem(address)
    with pytest.raises((CheckpointError, DataError), match="allowed: "):
        local_copy(address)


def test_a_scheme_of_ones_own_is_allowed_in_python(monkeypatch):
    monkeypatch.setattr(remote, "_allowed", set(remote._allowed))
    fsspec.register_implementation("mine", "fsspec.implementations.memory.MemoryFileSystem", True)
    with pytest.raises(DataError, match="mine:// is not opened"):
        open_filesystem("mine://a")
    remote.allow_scheme("mine")
    assert open_filesystem("mine://a")[1].endswith("a")


def test_a_run_folder_brings_no_addresses_options_or_places(hdfs, tmp_path, caplog):
    (hdfs.folder / "rows.jsonl").write_text('{"text": "a"}')
    elsewhere = f"{hdfs.address}rows.jsonl"
    data = {
        "learn": [{"path": elsewhere}, {"path": "b.txt", "storage_options": {"anon": True}}],
        "retain": [{"path": "c.txt"}],
        "cache_dir": str(tmp_path / "victim"),
        "chat_template": "/etc/template.jinja",
        "max_length": 77,
    }
    folder = run_folder(tmp_path / "run", data)
    options = evaluated(folder)
    assert [source.path for source in options.data.learn] == ["b.txt"]
    assert options.data.learn[0].storage_options == {}
    assert (options.data.cache_dir, options.data.chat_template) == (None, None)
    assert options.data.max_length == 77
    told = caplog.records[-1].getMessage()
    for part in (elsewhere, "storage_options of b", "victim", "template.jinja", "--trust_config"):
        assert part in told
    assert hdfs.requests == []
    trusted = evaluated(folder, "--trust_config", "true").data
    assert [source.path for source in trusted.learn] == [elsewhere, "b.txt"]
    assert trusted.cache_dir == data["cache_dir"] and trusted.learn[1].storage_options


def test_the_flag_stands_in_no_file(tmp_path, capsys):
    file = yaml_file(tmp_path / "a.yaml", {"trust_config": True})
    assert "trust_config counts on the command line only" in refused(capsys, "train", file)


# ---- 4: credentials go to no host that the user did not type ----


def record_base(folder, address):
    """Let whatever config lies in a folder name another base."""
    for path, place in (("sidecar_config.json", "base"), ("part_config.json", "base")):
        if (folder / path).is_file():
            values = json.loads((folder / path).read_text())
            values[place]["name_or_path"] = address
            (folder / path).write_text(json.dumps(values))
    if (folder / "adapter_config.json").is_file():
        values = json.loads((folder / "adapter_config.json").read_text())
        values["base_model_name_or_path"] = address
        (folder / "adapter_config.json").write_text(json.dumps(values))


def make_saved(kind, folder, model):
    """A sidecar, an adapter or a part of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "sidecar":
        export(expand(model, ExpansionConfig(num_blocks=1)), folder, form="sidecar")
    elif kind == "adapter":
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]})
        )
    else:
        (folder / "part_config.json").write_text(json.dumps({"format": 1, "base": {}}))


@pytest.mark.parametrize("kind", ["sidecar", "adapter", "part"])
@pytest.mark.parametrize("chained", ["", "simplecache::"])
def test_a_recorded_base_is_no_address(hdfs, tmp_path, monkeypatch, pico_llama, kind, chained):
    """The user types one server; the folder there must not send the token to another one."""
    monkeypatch.setenv("HADOOP_USER_NAME", "alice")
    make_saved(kind, hdfs.folder / "saved", pico_llama())
    with WebHdfs(tmp_path / "other") as other:
        record_base(hdfs.folder / "saved", chained + other.address + "base")
        options = LoadOptions(storage_options={"token": "secret"})
        with pytest.raises(CheckpointError, match="records an address as its base"):
            find_tokenizer(hdfs.address + "saved", options)
        assert other.requests == []


def test_a_base_that_the_user_types_may_be_an_address(hdfs, tmp_path, pico_llama, pico_tokenizer):
    make_saved("sidecar", hdfs.folder / "saved", pico_llama())
    with WebHdfs(tmp_path / "other") as other:
        pico_llama().save_pretrained(other.folder / "base")
        pico_tokenizer.save_pretrained(other.folder / "base")
        options = LoadOptions(base=other.address + "base", storage_options={"user": "al"})
        assert len(find_tokenizer(hdfs.address + "saved", options)) == len(pico_tokenizer)
        assert {request.params["user.name"] for request in other.requests} == {"al"}


# ---- 5: no code is fetched, and none runs without consent on the command line ----


@pytest.fixture
def plugin(tmp_path):
    """A plugin, and the file that it leaves behind when it runs."""
    mark = tmp_path / "executed"
    (tmp_path / "plugin.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    return str(tmp_path / "plugin.py"), mark


@pytest.mark.parametrize("verb", ["train", "plan", "data inspect", "data prepare"])
def test_plugins_of_a_file_need_consent(verb, plugin, tmp_path, capsys):
    path, mark = plugin
    data = {"train": [{"path": "a.txt"}], "plugins": [path]}
    file = yaml_file(tmp_path / "run.yaml", {"data": data})
    told = refused(capsys, *verb.split(), file)
    assert "asks to run code: data.plugins" in told and path in told and "--trust_config" in told
    assert not mark.exists()


@pytest.mark.parametrize(
    ("verb", "settings", "name"),
    [
        ("train", {"model": {"trust_remote_code": True}}, "model.trust_remote_code"),
        ("eval", {"load": {"trust_remote_code": True}}, "load.trust_remote_code"),
        ("export", {"load": {"trust_remote_code": True}}, "load.trust_remote_code"),
        ("chat", {"load": {"trust_remote_code": True}}, "load.trust_remote_code"),
        ("eval", {"include_path": "tasks", "tasks": "mine"}, "include_path"),
        ("calibrate", {"data": {"plugins": ["a.py"]}}, "data.plugins"),
    ],
)
def test_code_that_a_file_names_needs_consent(verb, settings, name, tmp_path, capsys):
    file = yaml_file(tmp_path / "a.yaml", settings)
    places = {"train": [], "export": ["m", "out"]}.get(verb, ["m"])
    told = refused(capsys, verb, *places, "--config", file)
    assert f"{file} asks to run code: {name}." in told and f"--{name} " in told


def test_consent_is_a_word_or_the_flag(plugin, tmp_path):
    path, _ = plugin
    file = yaml_file(tmp_path / "run.yaml", {"data": {"plugins": ["other.py"]}})
    assert trained(file, "--data.plugins", f"[{path}]").data.plugins == [path]
    assert trained(file, "--trust_config").data.plugins == ["other.py"]
    folder = run_folder(tmp_path / "run", {"plugins": ["theirs.py"]})
    assert evaluated(folder).data.plugins == []
    assert evaluated(folder, "--trust_config").data.plugins == ["theirs.py"]
    with pytest.raises(ConfigError, match="asks to run code"):
        trained(file, "--data.plugins+", path)


def test_no_plugin_lies_below_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTROLLLM_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "cache" / "models" / "dropped.py"
    place.parent.mkdir(parents=True)
    place.write_text("raise SystemExit")
    with pytest.raises(ConfigError, match="lies in a cache"):
        load_plugins(DataConfig(plugins=[str(place)]))
    monkeypatch.delenv("CONTROLLLM_CACHE")
    with pytest.raises(ConfigError, match="lies in a cache"):
        load_plugins(DataConfig(plugins=[str(place)], cache_dir=str(tmp_path / "cache")))


CODE = ("modeling.py", "pytorch_model.bin", "a.pt", "a.so", "a.pth", "sitecustomize.PY", "a.pkl")


def test_no_code_is_fetched_with_a_model(hdfs, tmp_path, caplog, pico_llama):
    pico_llama().save_pretrained(hdfs.folder / "model")
    for name in CODE:
        (hdfs.folder / "model" / name).write_text("print('mine')")
    with caplog.at_level(logging.INFO, "controlllm"):
        found = local_copy(hdfs.address + "model")
    assert sorted(path.name for path in found.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert (
        caplog.text.count("because they are no data files of a model or a run") == 1
        and "modeling.py" in caplog.text
    )


def test_no_code_is_fetched_with_a_run(hdfs, tmp_path):
    run = hdfs.folder / "runs" / "seven"
    saved = save_checkpoint(run, make_state(3))
    (run / "rehearsal").mkdir()
    for name in CODE:
        (run / name).write_text("print('mine')")
        (run / "rehearsal" / name).write_text("print('mine')")
        (saved / name).write_text("print('mine')")
    (run / "config.yaml").write_text("preset: null")
    local_copy(hdfs.address + "runs/seven")
    fetch_files(RemoteRun(hdfs.address + "runs/seven"), tmp_path / "run")
    files = [path for path in tmp_path.rglob("*") if hdfs.folder not in path.parents]
    assert not {path.name for path in files} & set(CODE)
    assert (tmp_path / "run" / "config.yaml").is_file()
    (saved / "manifest.json").unlink()
    write_manifest(saved)
    with pytest.raises(CheckpointError, match="is not a data file of a checkpoint"):
        local_copy(hdfs.address + "runs/seven/checkpoint-3")


# ---- 6: caches hold no pickles, and planted links are not followed ----


def test_what_ranks_share_is_read_without_running_code(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    trap = np.array([Trap(proof)], dtype=object)
    np.savez(tmp_path / "notes.npz", _hashes=trap, _difficulty=trap, _counts=trap)
    np.save(tmp_path / "ends.npy", trap, allow_pickle=True)
    with pytest.raises(DataError, match=r"is damaged .*allow_pickle=False"):
        Selection(SourceConfig("a")).load(tmp_path)
    (tmp_path / "ids.bin").write_bytes(b"xx")
    (tmp_path / "targets.bin").write_bytes(b"x")
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    meta = {"files": sizes, "dtype": "uint16"}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises((DataError, ValueError), match=r"Python objects"):
        TokenStore.open("a", tmp_path)
    assert not proof.exists()


def test_nothing_of_a_disk_is_unpickled(repository: Path) -> None:
    """Data workers send states to the process that forked them; nothing else is a pickle."""
    reads = re.compile(r"pickle\.loads?\(|Unpickler|torch\.load\(|allow_pickle=True|read_pickle")
    found = [
        path.relative_to(repository).as_posix()
        for path in sorted((repository / "src").rglob("*.py"))
        if reads.search(path.read_text(encoding="utf-8"))
    ]
    assert found == ["src/controlllm/data/loader/workers.py"]


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    target = tmp_path / "target"
    for ending in ("holder", "failed", "lock"):
        (tmp_path / f"target.{ending}").symlink_to(precious)
    with pytest.raises(DataError, match="cannot be locked"):
        make_once(target, target.exists, target.touch, 1)
    (tmp_path / "target.lock").unlink()
    make_once(target, target.exists, target.touch, 1)
    assert target.exists() and precious.read_text() == "mine"


def _prepared(folder: Path, tokenizer: PreTrainedTokenizerBase) -> object:
    (folder / "a.jsonl").write_text('{"text": "a row"}\n')
    source = SourceConfig(f"{folder}/a.jsonl", deduplicate=True)
    config = DataConfig([source], cache_dir=str(folder / "cache"))
    return TrainLoader(config, tokenizer, 1, seed=0).feeds[0].chunks


def test_a_cache_is_made_for_its_owner_and_one_of_others_is_refused(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    _prepared(tmp_path, pico_tokenizer)
    cache = tmp_path / "cache" / "data"
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    cache.chmod(0o770)
    with pytest.raises(ConfigError, match=r"other users may write to .*chmod go-w.*cache_dir"):
        _prepared(tmp_path, pico_tokenizer)
    cache.chmod(0o700)
    if os.geteuid() != 0:
        pytest.skip("only root may give a folder away")
    os.chown(cache, 65534, -1)
    with pytest.raises(ConfigError, match=r"belongs to another user \(id 65534"):
        _prepared(tmp_path, pico_tokenizer)
    # A link of theirs to a folder of ours is no better.
    os.chown(cache, 0, -1)
    cache.rename(tmp_path / "ours")
    cache.symlink_to(tmp_path / "ours")
    _prepared(tmp_path, pico_tokenizer)
    os.lchown(cache, 65534, -1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        _prepared(tmp_path, pico_tokenizer)


# ---- 7: adapters of the Hub: safetensors only, the recorded fingerprint is checked ----


@pytest.fixture
def published(tmp_path, monkeypatch):
    """`published(name, folder)` puts a folder into the Hub's local cache, as `hf download` does."""

    def publish(name: str, folder: Path) -> str:
        cache = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        commit = "0123456789abcdef0123456789abcdef01234567"
        shutil.copytree(folder, cache / "snapshots" / commit)
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(commit)
        return name

    for place in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{place}.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return publish


@pytest.fixture
def base(tmp_path, pico_llama, pico_tokenizer):
    return write_base(tmp_path / "base", pico_llama(), pico_tokenizer)


@pytest.fixture
def adapter(tmp_path, base):
    pytest.importorskip("peft")
    return export(adapted_on(base), tmp_path / "adapter", "adapter")


def test_adapters_of_the_hub_are_checked_as_local_ones(
    tmp_path, base, adapter, published, pico_llama, pico_tokenizer
):
    name = published("someone/adapter", adapter)
    assert torch.equal(logits_of(load_model(name)[0]), logits_of(load_model(adapter)[0]))
    other = write_base(tmp_path / "other", pico_llama(seed=5), pico_tokenizer)
    with pytest.raises(CheckpointError, match="was trained on"):
        load_model(name, LoadOptions(base=str(other)))


def test_adapters_of_the_hub_are_never_unpickled(tmp_path, base, adapter, published):
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "checksums.json").unlink()
    torch.save({"x": Trap(tmp_path / "ran")}, adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing"):
        load_model(published("someone/pickle", adapter))
    assert not (tmp_path / "ran").exists()


# ---- 8: regexes, alias bombs, huge headers and decompression bombs are bounded ----


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure")
def test_small_files_that_become_large_cost_no_memory(tmp_path: Path) -> None:
    """Each would become 64 MiB or more, most of them as one row; 8 rows of 256 KiB are allowed."""
    paths = [tmp_path / name for name in BOMBS]
    for path in paths:
        BOMBS[path.name][0](path)
        assert path.stat().st_size < 2**21
    found = read_bombs(paths)
    assert len(found) == 2 * len(BOMBS)
    for name, grown, told in found:
        assert BOMBS[name][1] in told, (name, told)
        assert grown < 48, (name, grown)


ALIASES = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ALIASES, "aliases .* expanded"),
        (f"a: &a {'x' * 9000}\nb: [{'*a,' * 5000}]", "aliases .* expanded"),
        ("a: &a [*a]", "contains itself"),
        ("a: " + "[" * 5000, "nested deeper"),
        ("a: [" + "1," * 60_000 + "]", "more than 50,000 values"),
        ("#" * (2**20 + 1), "more than 1 MiB"),
        (b"\x80\x04\x95\xff", "no text in UTF-8"),
        (b"a: \x00\x01", "not valid YAML"),
        (
            "data: {max_length: 8}\ntraining: {}\ndata: {max_length: 9}",
            "line 3: data is given twice",
        ),
        ("data:\n  max_length: 8\n  max_length: 9", "line 3: data.max_length is given twice"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
    ],
)
def test_yaml_is_read_within_bounds_by_every_verb(text, words, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for command in (["train", file], ["eval", "m", "--config", file], ["data", "inspect", file]):
        told = refused(capsys, *command)
        assert str(file) in told and re.search(words, told)
    (tmp_path / "run").mkdir()
    file.rename(tmp_path / "run" / "config.yaml")
    assert re.search(words, refused(capsys, "eval", tmp_path / "run"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target_modules", "(([a-z]+)+)+!", "target_modules is a pattern"),
        ("target_modules", ["(([a-z]+)+)+!"], r"target_modules\[0\].* plain name, no pattern"),
        ("target_modules", ["x"] * 50_001, "target_modules.* at most 50000"),
        ("exclude_modules", "(([a-z]+)+)+!", "exclude_modules.* must be a list"),
        ("layers_pattern", "(([a-z]+)+)+!", "layers_pattern.* plain name"),
        ("rank_pattern", {"(([a-z]+)+)+!": 2}, "rank_pattern.* plain name"),
        ("alpha_pattern", {"(([a-z]+)+)+!": 2}, "alpha_pattern.* plain name"),
        ("modules_to_save", ["(([a-z]+)+)+!"], "'modules_to_save' is used"),
        ("megatron_core", "os", "'megatron_core' is used"),
        ("layer_replication", [[0, 4]] * 1000, "'layer_replication' is used"),
        ("init_lora_weights", "pissa", "init_lora_weights='pissa'"),
        ("r", 60_000, "no tensor has the rank r=60000"),
        ("lora_alpha", float("nan"), "lora_alpha=nan"),
    ],
)
def test_an_adapter_gives_peft_names_and_numbers_only(adapter, field, value, message):
    (adapter / "checksums.json").unlink()
    edit(adapter / "adapter_config.json", lambda values: values.update({field: value}))
    with pytest.raises(CheckpointError, match=rf"adapter.*: .*{message}|{message}"):
        load_model(adapter)


def test_a_header_of_3_gib_and_json_of_absurd_size_are_not_read(tmp_path, base):
    with (base / "model.safetensors").open("wb") as file:
        file.write((3 * 2**30).to_bytes(8, "little"))
        file.truncate(4 * 2**30)  # sparse
    for read in (inspect_folder, load_model):
        with pytest.raises(CheckpointError, match=r"(?i)header ?too ?large"):
            read(base)
    (base / "model.safetensors").unlink()
    (base / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        load_model(base)
    with (base / "config.json").open("wb") as file:
        file.truncate(3 * 2**30)
    for read in (inspect_folder, load_model):
        with pytest.raises(CheckpointError, match=r"config\.json has 3,221,225,472 bytes"):
            read(base)


# ---- 9: no escape sequence reaches the terminal, no markup the model card ----

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202e\ud800"
STEERING = set("\x1b\x07\x9b\r\u202e\ud800")


def test_tensor_names_and_base_names_are_shown_not_obeyed(cli: Cli, pico_llama, tmp_path: Path):
    folder = tmp_path / "side"
    model = expand(pico_llama(), num_blocks=2)
    model.config.base["name_or_path"] = f"org/{EVIL[:-1]}"
    export(model, folder, "sidecar")
    (folder / "checksums.json").unlink()
    weights = folder / "sidecar.safetensors"
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(weights) | {f"model.{EVIL[:-1]}.expanded.x": torch.zeros(1)}
    save_file(tensors, weights, metadata)
    code, out, err = cli("inspect", folder)
    assert code == 0 and "owned" in out and not STEERING & set(out + err)
    code, _, err = cli("eval", folder, "--files", "x.txt", "--load.base", f"./{EVIL}")
    assert code == 2 and "owned" in err and not STEERING & set(err)


def test_errors_logs_warnings_tables_and_prints_pass_one_sink(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(argv: list[str]) -> None:
        print(format_table([EVIL], [[f"a|{EVIL}"]]))
        print(f"words {EVIL}")
        warnings.warn(EVIL, stacklevel=1)
        # Without the surrogate: pytest's own record of logs could not be sent to another process.
        logging.getLogger("some.library").warning(EVIL.replace("\ud800", ""))
        raise ConfigError(EVIL)

    monkeypatch.setattr("controlllm.cli.env.run", run)
    assert main(["env"]) == 2
    captured = capsys.readouterr()
    assert not STEERING & set(captured.out + captured.err)
    assert captured.out.count("owned") == 3 and captured.err.count("owned") >= 2


def test_a_bar_of_tqdm_still_moves(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(
        "controlllm.cli.env.run", lambda argv: [*tqdm(range(3), desc="bar")] and None
    )
    assert main(["env"]) == 0
    assert "\rbar:" in capsys.readouterr().err


def test_what_a_model_writes_cannot_steer_also_in_pieces(pico_llama, pico_tokenizer):
    written: list[str] = []
    chat = Chat(pico_llama(), pico_tokenizer, write=written.append)
    for piece in ("a\x1b", "[2J", "\r", "b\n"):
        chat.write(piece)
    assert "".join(written) == "a␛[2J␍b\n"


@pytest.mark.parametrize("form", ["full", "sidecar", "adapter", "collapsed"])
@pytest.mark.parametrize(
    "name",
    [
        "x\nlicense: mit\ntags: [owned",
        'x"); import os; os.system("id"); ("',
        "<script>alert(1)</script>",
        "![a](https://evil.example/x.png)",
        "x | y | <img src=x>",
        "a`b`<b>",
        "www.evil.example",
    ],
)
def test_a_base_name_is_no_markup_of_the_card(form: str, name: str):
    base = {"name_or_path": name, "revision": f"r {name}", "fingerprint": name}
    expansion = ExpansionConfig(num_blocks=1).to_dict()
    card = model_card(ControlLLMConfig(expansion=expansion, base=base), form)
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert set(yaml.safe_load(front)) <= {"library_name", "base_model", "tags"}
    text, code = body.split("```python\n")[0], body.split("```python\n")[1].split("\n```\n")[0]
    outside = re.sub(r"`[^`\n]*`", "", text)
    for markup in ("<", "](", "www.", "https:"):
        assert markup not in outside
    assert all(line.count(" | ") - line.count("\\|") <= 2 for line in text.splitlines())
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)]
    assert "system" not in {call.attr for call in calls}


# ---- 10: piped prompts are prompts ----


def test_piped_lines_are_prompts_and_never_commands(
    cli: Cli, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mine = tmp_path / "mine.jsonl"
    mine.write_text("mine\n")
    lines = f"/save {mine}\n/save {tmp_path / 'new.jsonl'}\n/quit\n/alpha 0\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    words = ("chat", finished_run, "--generation.max_new_tokens", 2, "--chat_template", "none")
    code, out, _ = cli(*words)
    assert code == 0
    assert mine.read_text() == "mine\n" and list(tmp_path.iterdir()) == [mine]
    assert not any(word in out for word in ("Saved", "alpha by layer", "is there already"))


def test_conversations_go_to_new_jsonl_files_only(pico_llama, pico_tokenizer, tmp_path: Path):
    written: list[str] = []
    chat = Chat(pico_llama(), pico_tokenizer, write=written.append)
    chat.messages = [{"role": "user", "content": "hi"}]
    mine, link, aim = tmp_path / "mine.jsonl", tmp_path / "link.jsonl", tmp_path / "aim"
    mine.write_text("mine\n")
    link.symlink_to(aim)
    for path in (mine, link, tmp_path / ".bashrc", tmp_path / "notes.txt"):
        chat.handle(f"/save {path}")
    assert mine.read_text() == "mine\n" and not aim.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.jsonl", "link.jsonl"}
    own = tmp_path / "own.jsonl"
    for _ in range(2):
        chat.handle(f"/save {own}")
    assert len(own.read_text().splitlines()) == 2
    own.unlink()
    own.symlink_to(mine)
    chat.handle(f"/save {own}")
    own.unlink()
    own.write_text("another\n")
    chat.handle(f"/save {own}")
    assert mine.read_text() == "mine\n" and own.read_text() == "another\n"


# ---- 11: a manifest lists exactly what is there ----


def test_a_manifest_lists_exactly_what_a_checkpoint_of_its_kind_has(tmp_path):
    saved = save_checkpoint(tmp_path, make_state(3))
    (saved / "shard-00002-model-00001-of-00001.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"shard-00002.* is not in manifest\.json"):
        load_checkpoint(saved)
    (saved / "shard-00002-model-00001-of-00001.safetensors").unlink()
    (saved / ".DS_Store").write_bytes(b"")  # of a file manager: nothing reads it
    assert load_checkpoint(saved).step == 3
    whole = json.loads((saved / "manifest.json").read_text())["files"]
    for name in whole:
        left = {other: entry for other, entry in whole.items() if other != name}
        edit(saved / "manifest.json", lambda values, left=left: values.update(files=left))
        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: it does not list"):
            load_checkpoint(saved)
    edit(saved / "manifest.json", lambda values: values.update(files={}))
    with pytest.raises(CheckpointError, match="does not list the config of a model"):
        load_checkpoint(saved)


# ---- 12: redirects, secrets and rotated tokens ----


@pytest.mark.parametrize("node", ["name", "data"])
def test_redirects_of_a_cluster_lead_to_data_nodes_only(hdfs, tmp_path, node):
    """A name node that sends every question elsewhere, and a data node that does."""
    (hdfs.folder / "a.txt").write_text("hello")
    filesystem, path = open_filesystem(hdfs.address + "a.txt", {"token": "secret"})
    with WebHdfs(tmp_path / "other") as other:
        hdfs.faults.elsewhere = {node: f"http://127.0.0.1:{other.port('name')}"}
        with pytest.raises(OSError, match="redirect"):
            filesystem.info(path)
            filesystem.cat_file(path)
        assert other.requests == []


def test_who_asks_is_told_to_the_name_node_only(hdfs):
    """Reading, writing, checksums: a data node gets no password and no cookie of the name node."""
    filesystem, path = open_filesystem(hdfs.address + "a.txt", {"user": "al", "password": "secret"})
    filesystem.client.session.cookies.set("hadoop.auth", "ticket", domain="127.0.0.1")
    filesystem.client.put_stream(io.BytesIO(b"hello"), path)
    with filesystem.open(path[:-5] + "b.txt", "wb") as file:
        file.write(b"hello")
    assert filesystem.cat_file(path) == b"hello"
    filesystem.ukey(path)
    told = {node: set() for node in ("name", "data")}
    for request in hdfs.requests:
        told[request.node] |= request.headers.keys() & {"authorization", "cookie"}
    assert told == {"name": {"authorization", "cookie"}, "data": set()}


def test_errors_of_a_cluster_show_no_token(hdfs, tmp_path, caplog):
    """Its client names whole URLs; where a node cannot be reached, reading and uploading."""
    saved = save_checkpoint(tmp_path / "run", make_state(3))
    (hdfs.folder / "a.txt").write_text("hello")
    filesystem, path = open_filesystem(hdfs.address + "a.txt", {"token": "hushhush"})
    remote = RemoteRun(hdfs.address + "runs", {"token": "hushhush"})
    hdfs.faults.refuse = True
    for ask in (lambda: filesystem.cat_file(path), lambda: Uploader(remote).send(saved)):
        with pytest.raises((OSError, CheckpointError), match="delegation=\\*\\*\\*") as caught:
            ask()
        assert "hushhush" not in str(caught.value) + caplog.text


@pytest.fixture
def web():
    """Two HTTP servers at all addresses of this machine, the first of which redirects /go to `to`.

    Gives a namespace: `typed` and `other` (ports), `to`, `told` (per server, headers that came).
    """
    state = SimpleNamespace(to="", told={"typed": [], "other": []})

    def handler(name):
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                state.told[name].append({key.lower() for key in self.headers.keys()})  # noqa: SIM118
                if self.path == "/go":
                    self.send_response(302)
                    self.send_header("Location", state.to)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Length", "5")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(b"hello")

            def log_message(self, *args):
                pass

        return Handler

    with ExitStack() as stack:
        for name in ("typed", "other"):
            server = stack.enter_context(ThreadingHTTPServer(("0.0.0.0", 0), handler(name)))
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            stack.callback(server.shutdown)
            setattr(state, name, server.server_address[1])
        yield state


SECRETS = {"headers": {"Authorization": "Bearer secret", "X-Token": "secret", "Cookie": "a=secret"}}


def read_web(address, **options):
    filesystem, path = open_filesystem(address, {**SECRETS, **options}, timeout=10)
    with filesystem.open(path) as file:
        return file.read()


def test_redirects_to_another_host_carry_no_secrets(web):
    web.to = f"http://localhost:{web.other}/a"
    options = {"client_kwargs": {"headers": {"X-Key": "secret"}}}
    assert read_web(f"http://127.0.0.1:{web.typed}/go", **options) == b"hello"
    secret = {"authorization", "x-token", "cookie", "x-key"}
    assert all(told & secret == secret for told in web.told["typed"])
    assert web.told["other"] and not any(told & secret for told in web.told["other"])


def test_redirects_within_a_server_keep_the_headers(web):
    web.to = f"http://127.0.0.1:{web.typed}/a"
    assert read_web(f"http://127.0.0.1:{web.typed}/go") == b"hello"
    assert all("x-token" in told for told in web.told["typed"])


def test_no_server_of_the_network_leads_into_this_machine(web, hdfs, own_address):
    """The typed host is another address of this machine, which counts as a private one."""
    web.to = f"http://127.0.0.1:{web.other}/a"
    with pytest.raises((OSError, DataError), match="a loopback address: redirects may not"):
        read_web(f"http://{own_address}:{web.typed}/go")
    assert web.told["other"] == []


def test_no_name_node_of_the_network_leads_into_this_machine(tmp_path, own_address):
    with WebHdfs(tmp_path / "hdfs", host="0.0.0.0") as hdfs:
        (hdfs.folder / "a.txt").write_text("hello")
        address = f"webhdfs://{own_address}:{hdfs.port('name')}/a.txt"
        filesystem, path = open_filesystem(address)
        with pytest.raises(OSError, match="a loopback address: redirects may not"):
            filesystem.cat_file(path)
        assert hdfs.ops("data") == []
        outer = {"data_proxy": {f"127.0.0.1:{hdfs.port('data')}": f"localhost:{hdfs.port('data')}"}}
        filesystem, path = open_filesystem(address, outer)
        assert filesystem.cat_file(path) == b"hello"  # The user names it.


@pytest.fixture
def own_address():
    """An address of this machine that is not the loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # Nothing is sent.
            found = probe.getsockname()[0]
        except OSError:
            found = "127.0.0.1"
    if found.startswith("127."):
        pytest.skip("this machine has no address but the loopback's")
    return found


SECRET = "s3cr3t-value"


@pytest.fixture
def secretive(tmp_path):
    """A run whose settings hold a secret at every place that there is for one."""
    (tmp_path / "a.txt").write_text("text " * 40)
    options = {"user": "alice", "token": SECRET, "anon": False, "session": SECRET}
    headers = {"client_kwargs": {"headers": {"Authorization": f"Bearer {SECRET}"}}}

    def make(**training):
        source = {"path": str(tmp_path / "a.txt"), "storage_options": {**options, **headers}}
        given = {"output_dir": str(tmp_path / "run"), "remote_storage_options": dict(options)}
        learn = [
            {"path": f"webhdfs://alice:{SECRET}@host:1/a.txt", "name": "a"},
            {"path": f"https://host/b.txt?sig={SECRET}&n=1", "name": "b"},
        ]
        data = {"train": [source], "learn": learn}
        return RunConfig.from_dict({"data": data, "training": given | training})

    return make


def test_config_yaml_holds_no_secret_and_is_its_owners(secretive, tmp_path):
    run = secretive()
    open_run_folder(run)
    path = tmp_path / "run" / "config.yaml"
    assert SECRET not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    saved = yaml.safe_load(path.read_text())
    assert saved["data"]["train"][0]["storage_options"]["user"] == "alice"
    assert saved["training"]["remote_storage_options"]["token"] == "<redacted>"
    assert SECRET not in str(redacted(run.to_dict()))


def test_a_placeholder_is_no_secret(secretive, tmp_path, capsys):
    open_run_folder(secretive())
    told = refused(capsys, "train", tmp_path / "run" / "config.yaml")
    assert "is a secret that was left out" in told and "storage_options" in told


def test_a_rotated_token_and_password_block_no_resume(secretive, tmp_path):
    run = secretive()
    before = redacted(run.to_dict())
    run.data.train[0].storage_options = {"token": "another", "user": "bob"}
    run.training.remote_storage_options = {}
    run.data.learn[0].path = run.data.learn[0].path.replace(SECRET, "another")
    assert list(folder_changes(before, run)) == []
    run.data.learn[0].path = run.data.learn[0].path.replace("host", "elsewhere")
    (change,) = folder_changes(before, run)
    assert "data.learn" in change and SECRET not in change and "another" not in change


def test_errors_and_wandb_show_no_secret(secretive, tmp_path, capsys, monkeypatch):
    words = ["--training.remote_storage_options", SECRET]
    assert SECRET not in refused(capsys, "train", *words)
    assert SECRET not in refused(capsys, "eval", "m", "--load.storage_options.token=" + SECRET)
    with pytest.raises(DataError) as failure:
        open_filesystem(f"http://127.0.0.1:9/a.txt?sig={SECRET}", timeout=2)
    assert SECRET not in str(failure.value) and "sig=***" in str(failure.value)
    sent = {}
    fake = types.SimpleNamespace(init=lambda **settings: sent.update(settings), Table=None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = secretive()
    (tmp_path / "run").mkdir()
    LOGGERS.get("wandb")(LoggerContext(run, total_steps=1, start_step=0))
    assert sent["config"]["training"]["max_steps"] == 1000 and SECRET not in str(sent)


# ---- 13: malformed files are one sentence that names file and field ----


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    """A change of one field."""

    def change(values: Any) -> None:
        *way, last = path
        for key in way:
            values = values[key]
        values[last] = to

    return change


SIDECARS = [
    (_set("format", to="x"), "format='x' must be a whole number"),
    (_set("format", to=99), "format 99"),
    (_set("expansion", to=None), "expansion=None must be a mapping"),
    (_set("expansion", to={"layers": "all"}), "expansion.layers='all' must be a list"),
    (_set("expansion", "alpha", to=float("nan")), "alpha=nan"),
    (_set("expansion", "mean_alpha", to={"1": "x"}), "expansion.mean_alpha.1='x'"),
    (_set("base", to=[]), "base=\\[\\] must be a mapping"),
    (_set("base", "vocab_size", to=10**12), "base.vocab_size=1000000000000 must be from 0"),
    (_set("base", "grown_vocab_size", to=10**12), "base.grown_vocab_size"),
    (_set("base", "grown_vocab_size", to=10**7), "settings are not those"),
    (_set("base", "num_hidden_layers", to=10**12), "base.num_hidden_layers"),
    (_set("base", "num_parameters", to="many"), "base.num_parameters='many'"),
    (_set("base", "name_or_path", to={"a": 1}), "base.name_or_path"),
    (_set("peft", to=3), "peft=3"),
]


@pytest.mark.parametrize(("change", "message"), SIDECARS)
def test_a_malformed_sidecar_is_one_sentence(tmp_path, base, change, message):
    sidecar = export(expanded_on(base), tmp_path / "sidecar", "sidecar")
    (sidecar / "checksums.json").unlink()
    edit(sidecar / "sidecar_config.json", change)
    for read in (inspect_folder, load_model):
        with pytest.raises(CheckpointError, match=rf"sidecar_config\.json.*{message}"):
            read(sidecar)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("num_hidden_layers", to=10**9), "num_hidden_layers=1000000000 must be from 0"),
        (_set("vocab_size", to="many"), "vocab_size='many'"),
        (_set("model_type", to=7), "model_type=7"),
        (_set("architectures", to=7), "architectures=7"),
        (_set("hidden_size", to=-1), "hidden_size=-1"),
    ],
)
def test_a_malformed_model_is_one_sentence(base, change, message):
    edit(base / "config.json", change)
    for read in (inspect_folder, load_model):
        with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
            read(base)


@pytest.mark.parametrize("content", ["", "[]", "null", "3", '"x"', "{", "\xff", '{"a": NaN}'])
@pytest.mark.parametrize(
    "name", ["config.json", "sidecar_config.json", "adapter_config.json", "part_config.json"]
)
def test_whatever_stands_in_a_config_inspect_ends_in_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError):
        inspect_folder(tmp_path)
    with pytest.raises(CheckpointError):
        load_model(tmp_path)


def test_a_malformed_training_state_is_one_sentence(tmp_path):
    for change, message in [
        (_set("step", to="x"), "step='x'"),
        (_set("rng", to={}), "rng="),
        (_set("history", to=[1]), r"history\[0\]=1"),
        (_set("loader", to={"$dict": 5}), "dict.*which the file lacks"),
        (_set("loader", to={"$tensor": []}), "tensor.*which the file lacks"),
    ]:
        saved = save_checkpoint(tmp_path, make_state(3))
        edit(saved / "state.json", change)
        (saved / "manifest.json").unlink()
        write_manifest(saved)  # by one who knows how
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(saved)


def test_a_base_that_is_its_own_base_is_refused(tmp_path, base):
    sidecar = export(expanded_on(base), tmp_path / "sidecar", "sidecar")
    (sidecar / "checksums.json").unlink()
    edit(sidecar / "sidecar_config.json", _set("base", "name_or_path", to=str(sidecar)))
    with pytest.raises(CheckpointError, match="records itself as its own base"):
        load_model(sidecar)


# ---- what a second reader found: names, templates, links and pipes ----


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("http://user:word@localhost:8799/x.jsonl?token=abc", "x"),
        ("http://user:word@localhost:8799/?token=abc", "localhost:8799"),
        ("s3://key:word@bucket", "bucket"),
        ("webhdfs://alice:word@host:9870/data/part-*.jsonl", "data"),
    ],
)
def test_names_of_sources_hold_no_secret(path: str, name: str) -> None:
    assert SourceConfig(path=path).name == name


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1/0 }}",
        "{% if",
        "{{ raise_exception('no') }}",
        "{{ messages[5].content }}",
        "{% for a in range(999999) %}x{% endfor %}",
        "{{ ().__class__.__mro__ }}",
    ],
)
def test_whatever_a_template_raises_is_one_sentence(template: str, pico_tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "hello"}]
    tokenizer = copy.deepcopy(pico_tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="chat template refuses"):
        prompt_ids(tokenizer, messages)
    with pytest.raises(DataError, match="chat template refuses"):
        Renderer(tokenizer, DataConfig(chat_template=template)).prepare(messages)


def test_a_template_that_is_a_link_says_no_other_file(tmp_path: Path, base: Path) -> None:
    (tmp_path / "mine").write_text("a secret")
    (base / "chat_template.jinja").unlink(missing_ok=True)
    (base / "chat_template.jinja").symlink_to(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="link to a file outside"):
        load_model(base)


def test_a_pipe_in_the_place_of_weights_is_not_waited_for(tmp_path: Path, base: Path) -> None:
    sidecar = export(expanded_on(base), tmp_path / "sidecar", "sidecar")
    (sidecar / "checksums.json").unlink()
    (sidecar / "sidecar.safetensors").unlink()
    os.mkfifo(sidecar / "sidecar.safetensors")
    with pytest.raises(CheckpointError, match="no file"):
        load_model(sidecar)
