"""Adapters by PEFT, on a base and on top of an expanded model: files, alpha 0, where they go."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.laws.architectures import VOCAB, make_base
from tests.train.ways import LORA, ON_TOP, base_folder, logits, run_of

from controlllm.checkpoint import LoadOptions, export, load_model, newest_checkpoint
from controlllm.cli import main
from controlllm.common.adapters import has_adapters
from controlllm.common.errors import ConfigError, ModelError
from controlllm.evaluate import Reference
from controlllm.expansion import combine
from controlllm.expansion.files.adapter_config import AdapterConfig
from controlllm.expansion.files.fingerprint import fingerprint
from controlllm.expansion.hub.peft import add_adapters
from controlllm.train import train
from controlllm.train.setup.quantised_linear import QuantisedLinear
from controlllm.train.setup.ready import set_up


def test_peft_reads_what_method_lora_saves(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    run = run_config(model={"model_name_or_path": base_folder(loaded, tmp_path)}, **LORA)
    result = train(run)
    expected = logits(result.model)
    model, tokenizer = load_model(result.output_dir)
    adapter = export(model, tmp_path / "adapter", "adapter", tokenizer)
    for folder in (newest_checkpoint(result.output_dir), adapter):
        theirs = PeftModel.from_pretrained(loaded()[0], folder)
        torch.testing.assert_close(logits(theirs), expected, rtol=0, atol=0)
    torch.testing.assert_close(logits(load_model(adapter)[0]), expected, rtol=0, atol=0)
    theirs.save_pretrained(tmp_path / "theirs")  # and the other way: what PEFT writes is read
    options = LoadOptions(base=base_folder(loaded, tmp_path))
    ours, _ = load_model(tmp_path / "theirs", options)
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=0)


def test_trained_adapters_are_trained_further(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    """By the same method; another one would take the adapters for the base."""
    model = {"model_name_or_path": base_folder(loaded, tmp_path)}
    first = train(run_config(model=model, training={"output_dir": str(tmp_path / "1")}, **LORA))
    model = {"model_name_or_path": str(first.output_dir)}
    training = {"output_dir": str(tmp_path / "2")}
    with pytest.raises(ConfigError, match=r"has adapters; use method='lora'"):
        train(run_config(model=model, method="full", training=training))
    second = train(run_config(model=model, training=training, method="lora"))
    start, end = (row["learn/new/loss"] for row in (second.history[0], second.history[-1]))
    assert start == pytest.approx(first.history[-1]["learn/new/loss"])
    assert end < start
    assert second.history[0]["retain/old/base_loss"] == first.history[0]["retain/old/base_loss"]


def test_alpha_0_is_the_base_and_any_other_keeps_the_adapters(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    model = {"model_name_or_path": base_folder(loaded, tmp_path)}
    result = train(run_config(model=model, **ON_TOP))
    plain, model = logits(loaded()[0]), result.model
    model.set_alpha(0)
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    model.save_sidecar(tmp_path / "at-0")
    at_0 = load_model(tmp_path / "at-0", LoadOptions(base=base_folder(loaded, tmp_path)))[0]
    torch.testing.assert_close(logits(at_0), plain, rtol=0, atol=0)
    model.set_alpha(1e-6)
    nearly = logits(model)
    assert not torch.allclose(nearly, plain, atol=1e-2)  # of the adapters alone
    with model.disable_expansion():
        torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    torch.testing.assert_close(logits(model), nearly, rtol=0, atol=0)
    collapsed = export(model, tmp_path / "collapsed", "collapsed")
    torch.testing.assert_close(
        logits(
            load_model(
                collapsed, LoadOptions(tokenizer_name_or_path=base_folder(loaded, tmp_path))
            )[0]
        ),
        nearly,
        rtol=1e-3,
        atol=1e-3,
    )
    with pytest.raises(ModelError, match="cannot be blended"):
        combine(model, copy.deepcopy(model))
    base = model.unload()
    assert not has_adapters(base)
    torch.testing.assert_close(logits(base), plain, rtol=0, atol=0)


def test_adapters_go_on_frozen_blocks_alone(run_config: Any, loaded: Any) -> None:
    ready = set_up(run_config(**ON_TOP), loaded())
    adapted = {name for name, p in ready.model.named_parameters() if "lora_" in name}
    ready.loader.close()
    assert adapted and not any(".1." in name.split("layers")[1][:3] for name in adapted)
    for layers, words in (([1], "not among them"), ([7], "not among them")):
        with pytest.raises(ConfigError, match=words):
            set_up(run_config(**{**ON_TOP, "peft": {"type": "lora", "layers": layers}}), loaded())
    with pytest.raises(ConfigError, match="not expanded, which are"):
        set_up(run_config(peft={"type": "lora"}, expansion={"num_blocks": 4}), loaded())
    with pytest.raises(ConfigError, match="no linear layer"):
        set_up(run_config(method="lora", peft={"target_modules": ["q"]}), loaded())
    with pytest.raises(ConfigError, match="does not divide"):
        set_up(run_config(method="lora", peft={"type": "oft", "block_size": 7}), loaded())


def test_the_first_values_of_adapters_are_the_seeds_alone() -> None:
    """Whatever was drawn before, on whichever process; and nothing is drawn from there."""

    def start(seed: int, drawn: int) -> dict[str, torch.Tensor]:
        model = make_base("llama")
        torch.rand(drawn)
        before = torch.get_rng_state()
        add_adapters(model, AdapterConfig(), seed)
        assert torch.equal(torch.get_rng_state(), before)
        return {n: p.detach() for n, p in model.named_parameters() if "lora_A" in n}

    a, b, c = start(1, 0), start(1, 5), start(2, 0)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a)


def test_a_quantised_base_with_adapters(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    """The frozen layers inside adapted ones are quantised, too."""
    pytest.importorskip("torchao")
    run = run_config(
        model={"quantize_base": "int8", "model_name_or_path": base_folder(loaded, tmp_path)},
        **ON_TOP,
    )
    result = train(run)
    assert result.history[-1]["learn/new/loss"] < result.history[0]["learn/new/loss"] - 0.1
    adapted = [m for m in result.model.modules() if hasattr(m, "lora_A")]
    assert adapted and all(isinstance(m.base_layer, QuantisedLinear) for m in adapted)
    assert has_adapters(load_model(result.output_dir)[0])


@pytest.mark.parametrize("arch", ["gpt2", "qwen3-moe", "llama-tied"])
def test_lora_on_other_architectures(arch: str) -> None:
    model = make_base(arch)
    ids = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    before, name = model(input_ids=ids).logits, fingerprint(model)
    add_adapters(model, AdapterConfig(r=2))
    assert torch.equal(model(input_ids=ids).logits, before)
    assert fingerprint(model) == name
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert not torch.allclose(model(input_ids=ids).logits, before, atol=1e-2)
    torch.testing.assert_close(Reference(model).forward(input_ids=ids), before, rtol=0, atol=0)
    with pytest.raises(ModelError, match="adapters already"):
        add_adapters(model, AdapterConfig())


def test_commands_on_adapters(
    run_config: Any, loaded: Any, texts: Any, tmp_path: Path, capsys: Any
) -> None:
    """eval finds the base inside, inspect and compare read files, export writes both forms."""
    base = base_folder(loaded, tmp_path)
    folder = tmp_path / "runs"
    for way in ("lora", "kl"):
        training = {"output_dir": str(folder / way), "max_forgetting": 100.0}
        train(run_of(run_config, texts, way, model={"model_name_or_path": base}, training=training))
    run = str(folder / "lora")
    assert main(["eval", run]) == 0
    assert "base loss" in capsys.readouterr().out
    assert main(["inspect", run]) == 0
    out = capsys.readouterr().out
    assert "adapter" in out and base in out
    for form in ("adapter", "full"):
        assert main(["export", run, str(tmp_path / form), "--form", form]) == 0
        assert main(["eval", str(tmp_path / form), "--files", texts["new_heldout"]]) == 0
    assert main(["export", str(folder / "kl"), str(tmp_path / "x"), "--form", "adapter"]) == 2
    assert "needs a base with adapters" in capsys.readouterr().err
    assert (
        main(["compare", str(folder), "--best", "true", "--output", str(tmp_path / "o.json")]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and {line.split()[1] for line in lines[2:]} == {"lora", "kl"}
    for way in ("lora", "kl"):
        assert main(["plan", "--config", str(folder / way / "config.yaml")]) == 0
        assert way in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "full")]) == 2
