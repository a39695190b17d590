"""Runs beside a base that bitsandbytes quantises while it is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from controlllm import expand
from controlllm.checkpoint import (
    LoadOptions,
    export,
    load_checkpoint,
    load_model,
    newest_checkpoint,
)
from controlllm.common.errors import ConfigError
from controlllm.common.packages.bitsandbytes import BNB_KINDS, packed_bytes, stored_bytes
from controlllm.data import eval_batches, read_examples
from controlllm.evaluate import evaluate_losses
from controlllm.expansion.files.fingerprint import fingerprint
from controlllm.expansion.surgery.quantised import full_weight, quantised_kind, quantised_layers
from controlllm.train import train
from controlllm.train.setup.quantize import quantize_base
from controlllm.train.setup.ready import set_up

pytest.importorskip("bitsandbytes")


@pytest.fixture
def folder(pico_llama: Any, pico_tokenizer: Any, tmp_path: Path) -> Path:
    pico_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    pico_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def full(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("kind", BNB_KINDS)
def test_in_memory_it_becomes_what_it_is_when_loaded(folder: Path, kind: str) -> None:
    base = full(folder)
    known = fingerprint(base)
    quantize_base(base, kind, torch.bfloat16)
    loaded, _ = load_model(folder, LoadOptions(quantize_base=kind))
    ours, theirs = dict(quantised_layers(base)), dict(quantised_layers(loaded))
    assert ours.keys() == theirs.keys() and len(ours) == 4 * 7
    ids = torch.arange(48).view(2, 24)
    for name, layer in ours.items():
        other: Any = theirs[name]
        assert quantised_kind(layer) == quantised_kind(other) == kind
        assert torch.equal(layer.weight, other.weight)
        assert torch.equal(full_weight(layer), full_weight(other))
        if "nf4" in kind:
            assert (layer.compute_dtype, other.compute_dtype) == (torch.bfloat16, torch.float32)
            layer.compute_dtype = torch.float32
        rows, columns = full_weight(layer).shape
        assert stored_bytes(layer) == packed_bytes(rows, columns, kind)
    with torch.no_grad():
        assert torch.equal(base(input_ids=ids).logits, loaded(input_ids=ids).logits)
    assert fingerprint(base) == fingerprint(loaded) == known


@pytest.mark.parametrize(
    ("kind", "over"),
    [
        ("bnb_nf4_double", {"training": {"backend": "native"}}),
        ("bnb_nf4", {"training": {"backend": "hf", "gradient_checkpointing": True}}),
        ("bnb_int8", {"training": {"backend": "native"}, "expansion": {"structure": "stack"}}),
        ("bnb_int8", {"training": {"backend": "hf"}}),
    ],
)
def test_a_run_learns_resumes_exactly_and_goes_to_other_bases(
    kind: str, over: dict[str, Any], folder: Path, run_config: Any, tmp_path: Path
) -> None:
    def run(name: str, **more: Any) -> tuple[Any, Any]:
        training = {**over["training"], "output_dir": str(tmp_path / name), **more}
        model = {"quantize_base": kind, "device": "cpu", "model_name_or_path": str(folder)}
        config = run_config(**{**over, "training": training, "model": model})
        return config, train(config)

    config, straight = run("straight", learning_rate=1e-2)
    run("resumed", learning_rate=1e-2, max_tokens=2 * 4 * 32 - 100)
    assert newest_checkpoint(tmp_path / "resumed").name == "checkpoint-2"
    run("resumed", learning_rate=1e-2)
    newest = newest_checkpoint(tmp_path / "straight")
    a, b = load_checkpoint(newest), load_checkpoint(newest_checkpoint(tmp_path / "resumed"))
    assert all(torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())
    assert {tensor.dtype for tensor in a.tensors.values()} == {torch.float32}
    assert a.model["config"]["base"]["quantised"] == [kind]
    losses = [row["learn/new/loss"] for row in straight.history if "learn/new/loss" in row]
    assert losses[-1] < losses[0] - 0.1

    beside, tokenizer = load_model(newest, LoadOptions(quantize_base=kind))
    onto_full, _ = load_model(newest)  # The base that it names, in full: no word about checks.
    examples, _ = read_examples(config.data.learn[0], tokenizer, config.data)
    batches = eval_batches(examples, tokenizer, config.data, 8)
    assert evaluate_losses(beside, batches).loss == pytest.approx(losses[-1], abs=1e-5)
    there = evaluate_losses(onto_full, batches).loss
    assert there == pytest.approx(losses[-1], abs=0.02 if kind == "bnb_int8" else 0.5)
    assert there != pytest.approx(losses[-1], abs=1e-6)
    quantize_base(onto_full, kind)
    assert evaluate_losses(onto_full, batches).loss == pytest.approx(losses[-1], abs=1e-5)
    export(load_model(newest)[0], tmp_path / "whole", "full", tokenizer)
    again, _ = load_model(tmp_path / "whole")
    assert evaluate_losses(again, batches).loss == pytest.approx(there, abs=1e-5)
    with pytest.raises(ConfigError, match=r"full expanded model.*Load its sidecar"):
        load_model(tmp_path / "whole", LoadOptions(quantize_base=kind))


def test_bfloat16_runs_compute_in_it(folder: Path, run_config: Any) -> None:
    model = {"quantize_base": "bnb_nf4", "device": "cpu", "model_name_or_path": str(folder)}
    ready = set_up(run_config(model=model, training={"bf16": True}))
    layers = [layer for _, layer in quantised_layers(ready.model)]
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}
    assert {p.dtype for p in ready.model.parameters() if p.requires_grad} == {torch.float32}


def test_a_base_that_was_saved_quantised_is_trained_beside(
    folder: Path, run_config: Any, pico_tokenizer: Any, tmp_path: Path
) -> None:
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    saved = tmp_path / "saved"
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings).save_pretrained(
        saved
    )
    pico_tokenizer.save_pretrained(saved)
    run = run_config(model={"model_name_or_path": str(saved), "device": "cpu"})
    result = train(run)
    newest = newest_checkpoint(result.output_dir)
    assert load_checkpoint(newest).model["config"]["base"]["quantised"] == ["bnb_nf4"]
    model, _ = load_model(newest)
    assert len(list(quantised_layers(model))) == 4 * 7
    for bad in ({"quantize_base": "bnb_int8"}, {"quantize_base": "nf4"}):
        with pytest.raises(ConfigError, match="quantize_base"):
            other = {"output_dir": str(tmp_path / "other")}
            model_config = {"model_name_or_path": str(saved), "device": "cpu", **bad}
            train(run_config(model=model_config, training=other))
    with pytest.raises(ConfigError, match=r"method='full' trains the base.*is quantised"):
        other = {"output_dir": str(tmp_path / "other")}
        train(run_config(method="full", model={"model_name_or_path": str(saved)}, training=other))


def test_expanded_models_are_quantised_but_for_what_trains(folder: Path) -> None:
    model = expand(full(folder), num_blocks=2)
    quantize_base(model, "bnb_nf4")
    for name, _ in quantised_layers(model):
        assert "expanded" not in name.split(".")
    assert len(list(quantised_layers(model))) == 4 * 7
    with pytest.raises(ConfigError, match="is bnb_nf4 already"):
        quantize_base(model, "bnb_int8")
