"""The form `lora`: PEFT's arithmetic on it is the collapsed model, at full rank and by alpha."""

import json
import math

import peft
import pytest
import torch
from tests.laws.architectures import make_base
from tests.laws.models import batch, logits, make_trained, train

from controlllm import collapse, expand, load_sidecars
from controlllm.checkpoint import export, load_model
from controlllm.checkpoint.models.export.lora import ERRORS, Lora
from controlllm.common.errors import CheckpointError, ConfigError, DataError, ModelError
from controlllm.common.losses import next_token_kl
from controlllm.expansion.merge.low_rank import factor

LOADABLE = ["llama", "llama-tied", "qwen3", "gpt2", "gpt-neox"]
"""Blocks whose matrices are linear layers; of GPT-2 they are turned."""


def without_vectors(model):
    """Put the frozen norms and biases in the copies, which LoRA cannot hold."""
    for block in model.blocks.values():
        for p, e in zip(block.pretrained.parameters(), block.expanded.parameters(), strict=True):
            if e.dim() == 1:
                e.data.copy_(p.data)
    return model


def on_base(name, folder):
    return peft.PeftModel.from_pretrained(make_base(name), folder)


@pytest.mark.parametrize("name", LOADABLE)
def test_at_full_rank_it_is_the_collapsed_model(name, tmp_path):
    model = without_vectors(make_trained(name))
    expected = logits(collapse(model))
    folder = export(model, tmp_path / "lora", Lora(rank=10_000))
    torch.testing.assert_close(logits(on_base(name, folder)), expected, rtol=1e-3, atol=2e-3)
    report = json.loads((folder / ERRORS).read_text())
    assert (report["error"] < 1e-5, report["left_out_norms"]) == (True, {})
    assert report["matrices"] == len(report["error_by_matrix"]) > 4


def test_its_scale_is_the_dial(tmp_path):
    model = without_vectors(make_trained("llama"))
    model.set_alpha(1.0)
    folder = export(model, tmp_path / "lora", Lora(rank=32))
    adapted = on_base("llama", folder)
    for alpha in (0.0, 0.3):
        for module in adapted.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.scaling["default"] = alpha
        model.set_alpha(alpha)
        torch.testing.assert_close(logits(adapted), logits(collapse(model)), rtol=1e-3, atol=2e-3)


def test_the_printed_errors_are_those_of_what_is_written(tmp_path, pico_tokenizer):
    model = make_trained("llama")
    form = Lora(rank=4)
    folder = export(model, tmp_path / "lora", form, pico_tokenizer)
    report = json.loads((folder / ERRORS).read_text())
    base, flat = make_base("llama"), collapse(model)
    merged = on_base("llama", folder).merge_and_unload()
    missed2 = change2 = left2 = 0.0
    for (name, p), c, m in zip(
        base.named_parameters(), flat.parameters(), merged.parameters(), strict=True
    ):
        change, missed = (c - p).norm().item(), (c - m).norm().item()
        if name in report["error_by_matrix"]:
            assert report["error_by_matrix"][name] == pytest.approx(missed / change, rel=1e-3)
            missed2, change2 = missed2 + missed**2, change2 + change**2
        elif change:
            assert report["left_out_norms"][name] == pytest.approx(change, rel=1e-3)
            left2 += change**2
    assert report["error"] == pytest.approx(math.sqrt(missed2 / change2), rel=1e-3)
    both = math.sqrt((missed2 + left2) / (change2 + left2))
    assert report["error_with_left_out"] == pytest.approx(both, rel=1e-3)
    least = math.sqrt(left2 / (change2 + left2))
    assert report["error_at_full_rank"] == pytest.approx(least, rel=1e-3)
    assert 0.05 < report["error"] < both < 1
    assert f"relative error of 14 matrices {report['error']:.3g}" in form.told[1]
    assert form.told[1] in (folder / "README.md").read_text()


def test_the_divergences_on_a_text(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a b c")
    model = without_vectors(make_trained("llama"))
    before = logits(model)
    form = Lora(rank=32, texts=str(text))
    report = json.loads((export(model, tmp_path / "lora", form, Words()) / ERRORS).read_text())
    with torch.no_grad():
        ids = batch()["input_ids"][:1]
        trained = model(ids).logits
        flat = next_token_kl(trained, collapse(model)(ids).logits).mean().item()
        base = next_token_kl(trained, make_base("llama")(ids).logits).mean().item()
    assert report["kl"]["tokens"] == 10
    assert report["kl"]["collapsed"] == pytest.approx(flat, rel=1e-4)
    assert report["kl"]["lora"] == pytest.approx(flat, rel=1e-2)  # full rank
    assert report["kl"]["base"] == pytest.approx(base, rel=1e-4)
    assert "KL from the trained model" in form.told[-1]
    assert torch.equal(logits(model), before)
    with pytest.raises(DataError, match="cannot be read"):
        export(model, tmp_path / "no", Lora(texts=str(tmp_path / "missing")), Words())
    text.write_text(" \n\n")
    with pytest.raises(DataError, match="holds no text"):
        export(model, tmp_path / "no", form, Words())
    with pytest.raises(ConfigError, match="with a tokenizer only"):
        export(model, tmp_path / "no", form)


class Words:
    """A tokenizer that knows one text."""

    def __call__(self, text, return_tensors):
        return {"input_ids": batch()["input_ids"][:1]}

    def save_pretrained(self, folder):
        pass


def test_ends_are_left_out_and_named(tmp_path):
    model = make_trained("llama-tied", "ends")
    form = Lora(rank=8)
    report = json.loads((export(model, tmp_path / "lora", form) / ERRORS).read_text())
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= report["left_out_norms"].keys()
    assert "lm_head.weight" not in report["left_out_norms"]  # one weight with the embedding
    norms = report["left_out_norms"]
    largest = max(norms, key=norms.get)
    assert f"left out: {len(norms)} tensors that LoRA cannot hold" in form.told[2]
    assert form.told[2].endswith(f"the largest {norms[largest]:.3g} ({largest})")
    least = f"at no rank less than {report['error_at_full_rank']:.3g}"
    assert least in form.told[3] and "collapsed, sidecar and full keep all" in form.told[3]


def test_it_loads_here_too_and_knows_its_base(tmp_path, pico_llama, pico_tokenizer):
    base = pico_llama()
    base.save_pretrained(tmp_path / "base")
    pico_tokenizer.save_pretrained(tmp_path / "base")
    base.config.name_or_path = str(tmp_path / "base")
    folder = export(train(expand(base, num_blocks=1)), tmp_path / "lora", "lora", pico_tokenizer)
    adapted = logits(peft.PeftModel.from_pretrained(pico_llama(), folder))
    model, _ = load_model(folder)
    assert torch.equal(logits(model), adapted)
    pico_llama(seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match="was trained on"):
        load_model(folder)


def test_what_has_no_lora_is_refused(tmp_path):
    for variant, message in [("stack", "adds layers"), ("hybrid", "adds layers")]:
        with pytest.raises(ModelError, match=message):
            export(make_trained("llama", variant), tmp_path / "x", "lora")
    model = make_trained("llama")
    model.set_alpha(0.0)
    with pytest.raises(ModelError, match="no LoRA to write"):
        export(model, tmp_path / "x", "lora")
    with pytest.raises(ConfigError, match=r"rank=0 is out of range"):
        Lora(rank=0)
    assert not (tmp_path / "x").exists()


def test_of_several_sidecars_none_is_exported(tmp_path):
    for name in ("a", "b"):
        make_trained("llama").save_sidecar(tmp_path / name)
    model = load_sidecars(make_base("llama"), {n: tmp_path / n for n in ("a", "b")}, False)
    for form in ("collapsed", "lora", "unrolled", "sidecar"):
        with pytest.raises(ModelError, match=r"several by name \(a, b\)"):
            export(model, tmp_path / form, form)
    assert not any((tmp_path / form).exists() for form in ("collapsed", "lora", "unrolled"))


def test_factors_are_the_nearest_of_their_rank():
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(20, 30, generator=generator)
    a, b = factor(small, 5)
    best = torch.linalg.svdvals(small)[5:].norm()
    assert torch.dist(small, b @ a).item() == pytest.approx(best.item(), rel=1e-5)
    a, b = factor(small, 25)
    assert (a.shape, b.shape) == ((25, 30), (20, 25))
    torch.testing.assert_close(b @ a, small, rtol=1e-4, atol=1e-4)
    # A large one by chance that is the same each time: close to the best, which falls like 1/k.
    left, _ = torch.linalg.qr(torch.randn(600, 600, generator=generator))
    large = left / torch.arange(1, 601) @ left.T
    before = torch.get_rng_state()
    a, b = factor(large, 16)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(factor(large, 16)[0], a)
    best = (1 / torch.arange(17, 601)).norm().item()
    assert torch.dist(large, b @ a).item() == pytest.approx(best, rel=0.01)
