"""Files as they are written, then damaged: each loads as before, or is refused in a sentence."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.trust.schemas_helpers import adapted_on, expanded_on, logits_of, write_base
from torch import Tensor

from controlllm.checkpoint import (
    TrainingState,
    describe_model,
    export,
    inspect_folder,
    load_model,
    make_form,
    mark_best,
    save_checkpoint,
    trained_tensors,
)
from controlllm.checkpoint.training.manifest import MANIFEST, write_manifest
from controlllm.checkpoint.training.state import load_checkpoint
from controlllm.common.errors import ControlLLMError
from controlllm.common.storage.checksums import CHECKSUMS, write_checksums

TEXT = "One text, two words."
ODD = [None, True, -1, 0, 3, 10**12, 1e300, float("nan"), "x", "", "../x", [], [1], {}, {"a": [{}]}]
ADDED = ["shard-00001-model-00001-of-00001.safetensors", "extra.json", "part.safetensors", "x.py"]


@dataclass(frozen=True)
class Saved:
    """What was written, and what it gives."""

    folder: Path
    logits: Tensor
    ids: list[int]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, pico_llama, pico_tokenizer) -> dict[str, Saved]:
    """Every form of a saved model."""
    place = tmp_path_factory.mktemp("saved")
    base = write_base(place / "base", pico_llama(), pico_tokenizer)
    model = expanded_on(base)
    folders = [
        export(model, place / f, f, pico_tokenizer) for f in ("sidecar", "full", "collapsed")
    ]
    few = make_form("sidecar", {"bits": 2})
    folders.append(export(model, place / "small", few, pico_tokenizer))
    folders.append(export(adapted_on(base), place / "adapter", "adapter", pico_tokenizer))
    run = place / "run"
    tensors, rng = trained_tensors(model), [{"python": (3, (1, 2), None)}]
    state = TrainingState(4, tensors, describe_model(model), loader={"at": (1, "x")}, rng=rng)
    save_checkpoint(run, state)
    mark_best(run, 4, {"learn_loss": 1.5})
    return {folder.name: _loaded(folder) for folder in [*folders, run]}


def _loaded(folder: Path) -> Saved:
    model, tokenizer = load_model(folder)
    if folder.name == "run":
        load_checkpoint(folder / "checkpoint-4")
    return Saved(folder, logits_of(model), tokenizer(TEXT).input_ids)


def _fields(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in nested JSON: what holds it, and its key or index there."""
    keys = list(values) if isinstance(values, dict) else range(len(values))
    for key in keys:
        yield values, key
        if isinstance(values[key], dict | list):
            yield from _fields(values[key])


def _harm_field(file: Path, draw: Any) -> None:
    values = json.loads(file.read_text())
    holder, key = draw(st.sampled_from(list(_fields(values))))
    if draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = draw(st.sampled_from(ODD))
    file.write_text(json.dumps(values))


def _truncate(file: Path, draw: Any) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: draw(st.integers(0, len(content) - 1))])


def _swap(file: Path, draw: Any) -> None:
    content = bytearray(file.read_bytes())
    places = st.integers(0, min(len(content), draw(st.sampled_from([8, 200, 10**9]))) - 1)
    one, other = draw(places), draw(places)
    content[one], content[other] = content[other], content[one]
    content[one] ^= draw(st.integers(0, 255))
    file.write_bytes(bytes(content))


def _remove(file: Path, draw: Any) -> None:
    file.unlink()


def _add(file: Path, draw: Any) -> None:
    shutil.copy(file, file.with_name(draw(st.sampled_from(ADDED))))


def _harm(folder: Path, draw: Any) -> None:
    """One change, as an accident or a stranger makes it."""
    harm = draw(st.sampled_from([_harm_field, _harm_field, _truncate, _swap, _remove, _add]))
    files = sorted(path for path in folder.rglob("*") if path.stat().st_size and path.is_file())
    if harm is _harm_field:
        files = [path for path in files if path.suffix == ".json"]
    harm(draw(st.sampled_from(files)), draw)


def _sign_again(folder: Path) -> None:
    """The sums as they would be written now, by one who knows how."""
    for note in list(folder.rglob(MANIFEST)):
        note.unlink()
        write_manifest(note.parent)
    if (folder / CHECKSUMS).is_file():
        write_checksums(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("signed", [False, True])
@given(data=st.data())
@settings(
    max_examples=100,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_harmed_files_load_as_before_or_are_refused(saved, tmp_path, signed, data):
    """Where sums are made anew (`signed`) they tell nothing: then all that counts is a sentence."""
    one = saved[data.draw(st.sampled_from(sorted(saved)))]
    folder = tmp_path / one.folder.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(one.folder, folder)
    _harm(folder, data.draw)
    if signed:
        _sign_again(folder)
    try:
        inspect_folder(folder)
    except ControlLLMError as error:
        assert 0 < len(str(error)) < 1500
    try:
        found = _loaded(folder)
    except ControlLLMError as error:
        assert 0 < len(str(error)) < 1500
        return
    if not signed:
        assert torch.equal(found.logits, one.logits)
        assert found.ids == one.ids
