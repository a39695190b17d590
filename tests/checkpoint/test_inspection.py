"""Numbers of `inspect` against those of the loaded model."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from controlllm import expand
from controlllm.checkpoint import Kind, export, inspect_folder
from controlllm.common.errors import CheckpointError


def count(model: torch.nn.Module, trained: bool) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad is trained)


@pytest.mark.parametrize(
    "structure, interpolator",
    [*itertools.product(["concat", "hybrid"], ["lerp", "dlerp", "moe"]), ("stack", "lerp")],
)
def test_counts_are_those_of_the_model(
    tmp_path: Path, pico_llama: Callable, structure: str, interpolator: str
) -> None:
    model = expand(
        pico_llama(), num_blocks=2, structure=structure, interpolator=interpolator, expand_ends=True
    )
    export(model, tmp_path / "full", "full")
    full = inspect_folder(tmp_path / "full")
    assert full.kind is Kind.EXPANDED
    assert (full.total.trained, full.total.frozen) == (count(model, True), count(model, False))
    assert full.total.bytes == 4 * (full.total.trained + full.total.frozen)
    export(model, tmp_path / "side", "sidecar")
    side = inspect_folder(tmp_path / "side")
    assert (side.total.trained, side.total.frozen) == (full.total.trained, full.total.frozen)
    assert [part.name for part in side.parts] == [part.name for part in full.parts]
    assert side.total.bytes < full.total.bytes  # the base lies elsewhere
    kinds = {part.name: part.kind for part in side.parts}
    first = "concat" if structure == "concat" else "stack"
    assert kinds["model.layers.1"] == first
    assert kinds["lm_head"] == "end"


def test_alphas_are_those_of_the_model(tmp_path: Path, pico_llama: Callable) -> None:
    model = expand(pico_llama(), num_blocks=2, alpha=0.25, train_alpha=True)
    with torch.no_grad():
        model.blocks[3].interpolator.logit += 1
    model.set_alpha({1: 0.7})
    export(model, tmp_path / "side", "sidecar")
    found = inspect_folder(tmp_path / "side").parts
    parts = {part.name: part.alpha for part in found if part.kind != "base"}
    expected = {f"model.layers.{layer}": alpha for layer, alpha in model.alphas().items()}
    assert parts == pytest.approx(expected)


def test_a_gate_that_was_not_measured_has_no_alpha(tmp_path: Path, pico_llama: Callable) -> None:
    model = expand(pico_llama(), num_blocks=1, interpolator="dlerp")
    export(model, tmp_path / "a", "sidecar")
    assert inspect_folder(tmp_path / "a").parts[0].alpha is None
    with model.record_alpha(), torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    export(model, tmp_path / "b", "sidecar")
    assert inspect_folder(tmp_path / "b").parts[0].alpha == pytest.approx(0.5)


@pytest.mark.parametrize("freeze", [[], ["blocks"], ["blocks", "embeddings"], ["norm", "head"]])
def test_unfrozen_groups_count_as_trained(
    tmp_path: Path, pico_llama: Callable, freeze: list[str]
) -> None:
    model = expand(pico_llama(), num_blocks=1, freeze=freeze)
    export(model, tmp_path / "full", "full")
    assert inspect_folder(tmp_path / "full").total.trained == count(model, True)


def test_a_truncated_sidecar_is_named(tmp_path: Path, pico_llama: Callable) -> None:
    export(expand(pico_llama(), num_blocks=1), tmp_path / "side", "sidecar")
    file = tmp_path / "side" / "sidecar.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"sidecar\.safetensors is truncated or changed"):
        inspect_folder(tmp_path / "side")


def test_plain_model_hub_name_and_broken_file(tmp_path: Path, pico_llama: Callable) -> None:
    model = pico_llama()
    model.save_pretrained(tmp_path / "plain")
    found = inspect_folder(tmp_path / "plain")
    assert found.expansion is None
    assert found.total.trained == sum(p.numel() for p in model.parameters())
    with pytest.raises(CheckpointError, match="hf download"):
        inspect_folder("someone/model")
    (tmp_path / "plain" / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        inspect_folder(tmp_path / "plain")
