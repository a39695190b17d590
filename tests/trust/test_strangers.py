"""Issue table 1: what a stranger made (a folder, a YAML file, a server) can only be read."""

import os
import pickle
import re
import stat
from pathlib import Path

import pytest
from tests.trust.sources_helpers import Trap
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError, DataError
from controlllm.common.lock import make_once
from controlllm.data import DataConfig, SourceConfig, TrainLoader, postprocess

# ---- 1: best.json and manifests name nothing outside the run's own folder ----


# ---- 2: no file makes a parser import a module ----


# ---- 3: addresses, options and cache folders of somebody's run folder need a flag ----


# ---- 4: credentials go to no host that the user did not type ----


# ---- 5: no code is fetched, and none runs without consent on the command line ----


# ---- 6: caches hold no pickles, and planted links are not followed ----


def test_what_ranks_share_is_read_without_running_code(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    (tmp_path / "0").write_bytes(pickle.dumps(Trap(proof)))
    with pytest.raises(DataError, match="row 0 of rank 0 is damaged"):
        list(postprocess._read_parts(tmp_path, 1))
    assert not proof.exists()


def test_nothing_of_a_disk_is_unpickled(repository: Path) -> None:
    """Data workers send states to the process that forked them; nothing else is a pickle."""
    reads = re.compile(r"pickle\.loads?\(|Unpickler|torch\.load\(|allow_pickle=True|read_pickle")
    found = [
        path.relative_to(repository).as_posix()
        for path in sorted((repository / "src").rglob("*.py"))
        if reads.search(path.read_text(encoding="utf-8"))
    ]
    assert found == ["src/controlllm/data/serving.py"]


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
    return TrainLoader(config, tokenizer, 1, seed=0).feeds[0].blocks


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


# ---- 8: regexes, alias bombs, huge headers and decompression bombs are bounded ----


# ---- 9: no escape sequence reaches the terminal, no markup the model card ----


# ---- 10: piped prompts are prompts ----


# ---- 11: a manifest lists exactly what is there ----


# ---- 12: redirects, secrets and rotated tokens ----


# ---- 13: malformed files are one sentence that names file and field ----
