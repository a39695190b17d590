"""Issue table 3: no wrong number, and nothing that is said is ignored."""

import pytest
import torch
from tests.evaluate.samples import padded
from tests.laws.models import base_logits, batch, logits, make_trained

from controlllm import collapse, expand
from controlllm.checkpoint import inspect_folder
from controlllm.common.errors import ModelError
from controlllm.evaluate import calibrate
from controlllm.train import train

# ---- bos: pieces of a long text begin with BOS ----


# ---- padding: the padding token's id changes nothing ----


# ---- gates: the dial multiplies a gate ----


@pytest.mark.parametrize("interpolator", ["dlerp", "dlerpin", "moe"])
def test_alpha_sampling_trains_the_gates(run_config, loaded, interpolator):
    run = run_config(
        expansion={"interpolator": interpolator},
        training={"alpha_sampling": [0.2, 0.8], "max_steps": 4, "eval_steps": 100},
    )
    model = train(run, loaded()).model
    fresh = expand(loaded()[0], run.expansion)
    for layer, block in model.blocks.items():
        for name, parameter in block.interpolator.named_parameters():
            start = fresh.blocks[layer].interpolator.get_parameter(name)
            assert not torch.equal(parameter, start), (layer, name)


def gate_means(model, dial):
    """Mean alphas at a dial, after a forward pass, and its logits."""
    model.set_alpha(dial)
    out = logits(model)
    return model.alphas(), out


@pytest.mark.parametrize("interpolator", ["dlerp", "dlerpin", "moe"])
def test_the_dial_multiplies_a_gate(interpolator):
    model = make_trained("llama", interpolator)
    trained, as_trained = gate_means(model, None)
    full, at_one = gate_means(model, 1.0)
    half, at_half = gate_means(model, 0.5)
    first = min(trained)  # its input does not depend on the dial
    assert torch.equal(at_one, as_trained) and full == trained
    assert half[first] == pytest.approx(0.5 * trained[first]) and half[first] != 0.5
    assert not torch.equal(at_half, as_trained)
    by_layer, _ = gate_means(model, {first: 0.25})
    assert by_layer[first] == pytest.approx(0.25 * trained[first])
    assert torch.equal(gate_means(model, 0.0)[1], base_logits("llama"))
    assert model.alphas() == dict.fromkeys(model.blocks, 0.0)


@pytest.mark.parametrize("interpolator", ["lerp", "slerp", "prog", "proj"])
def test_the_dial_replaces_a_constant(interpolator):
    model = make_trained("llama", interpolator)
    assert gate_means(model, 0.3)[0] == dict.fromkeys(model.blocks, 0.3)
    assert not torch.equal(gate_means(model, 1.0)[1], gate_means(model, None)[1])


def test_a_dialled_gate_collapses_is_inspected_and_told_as_it_computes(tmp_path):
    model = make_trained("llama", "dlerp")
    model.set_alpha(0.5)
    with pytest.raises(ModelError, match="never measured"):
        collapse(model)
    with model.record_alpha():
        logits(model)
    means = model.expansion.mean_alpha
    first = min(means)
    assert model.alphas()[first] == pytest.approx(0.5 * means[first])
    name = f"model.layers.{first}.mlp.up_proj.weight"
    block = model.blocks[first]
    pretrained, expanded = (b.mlp.up_proj.weight for b in (block.pretrained, block.expanded))
    folded = torch.lerp(pretrained, expanded, 0.5 * means[first])
    torch.testing.assert_close(collapse(model).get_parameter(name), folded)
    model.save_sidecar(tmp_path / "sidecar")
    shown = {part.name: part.alpha for part in inspect_folder(tmp_path / "sidecar").parts}
    assert shown[f"model.layers.{first}"] == pytest.approx(0.5 * means[first])
    card = (tmp_path / "sidecar" / "README.md").read_text()
    assert "its token gates as they were trained (1)" in card


def test_calibration_of_gates_ends_at_the_model_as_trained():
    model = make_trained("llama", "dlerp")
    sets = {"set": [padded(batch()["input_ids"][:1].tolist())]}
    curve = calibrate(model, sets, sets, 100.0, alphas=[0.5, 1.0], refine_steps=0)
    points = {point.label: point.learn for point in curve.points}
    assert points["1"] == points["trained"] != points["0.5"]
    assert curve.dial == "dial" and curve.chosen.alpha == 1.0
    assert model.expansion.mean_alpha.keys() == model.blocks.keys()


# ---- config: expand copies the config ----


# ---- fields: fields that a source, a structure, packing or a verb does not read ----


# ---- preset: a preset applies, however the run config is made ----


# ---- argv: the parsed model decides whose settings are taken ----


# ---- calibrate: the measured mean alpha is written, with the card ----


# ---- compare: nan is the worst forgetting ----


# ---- resume: what cannot change the result may change ----


# ---- retain: the size of an evaluation is said and bounded ----


# ---- lists: lists replace, and are printed ----


# ---- order: the command line counts more than a file, and nothing is given twice ----


# ---- weights: missing tensors, weights that are not numbers, checksums ----


# ---- said: what is said is used ----


# ---- swamped: a divergence that dwarfs the loss is told ----


# ---- overlap: rows that are trained on and measured ----


# ---- special: text is text, also where it looks like a control token ----


# ---- edited: a sidecar's record is checked as a whole ----


# ---- tracebacks: a sentence, before anything slow ----


# ---- messages: answers to wrong words are short and come first ----


# ---- labels: what a number is the number of ----


# ---- columns: two columns joined, and numbers as text ----


# ---- progress: long work shows a line ----


# ---- targets: rows without targets are told before the first step ----
