"""What is written for mergekit: the recipe by hand, and by the package where it is installed."""

import copy

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from controlllm import collapse, expand
from controlllm.checkpoint import export
from controlllm.common.errors import CheckpointError, ModelError
from controlllm.expansion.files.sidecar import sidecar_tensors
from controlllm.integrations.mergekit import main, merge_recipe, write_for_mergekit

VARIANTS = {
    "lerp": {"num_blocks": 2},
    "dlerp": {
        "num_blocks": 2,
        "interpolator": "dlerp",
        "dial": 0.8,
        "mean_alpha": {1: 0.4, 3: 0.7},
    },
    "stack": {"num_blocks": 2, "structure": "stack"},
    "ends": {"num_blocks": 2, "expand_ends": True, "alpha": 0.3},
}


def make_trained(base_folder, **settings):
    """An expanded model whose trained tensors are off their start."""
    model = expand(AutoModelForCausalLM.from_pretrained(base_folder), **settings)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in sidecar_tensors(model).items():
            if ".interpolator." not in name:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def weight_of(entry, name):
    """The rule of mergekit 0.1.5: the first filter that is part of the tensor's name counts."""
    conditions = entry["parameters"]["weight"]
    return next(c["value"] for c in conditions if c.get("filter", "") in name)


def linear_by_hand(recipe, models):
    """Sum over models of weight times tensor, in float64."""
    return {
        name: sum(
            weight_of(entry, name) * model[name].double()
            for entry, model in zip(recipe["models"], models, strict=True)
        )
        for name in models[0]
    }


def close(ours, theirs):
    """Equal but for the last bits of a float32 number."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor.double(), theirs[name].double(), rtol=3e-7, atol=3e-8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_recipe_makes_the_collapsed_model(base_folder, tmp_path, variant):
    model = make_trained(base_folder, **VARIANTS[variant])
    path = write_for_mergekit(model, tmp_path / "merge", tokenizer=None)
    recipe = yaml.safe_load(path.read_text())
    assert [entry["model"] for entry in recipe["models"]] == [
        str(base_folder),
        str(tmp_path / "merge" / "donor"),
    ]
    base, donor = tensors_of(base_folder), tensors_of(tmp_path / "merge" / "donor")
    collapsed = collapse(model).state_dict()
    merged = linear_by_hand(recipe, [base, donor])
    close(merged, {name: collapsed[name] for name in merged})
    assert any(not torch.equal(base[name], collapsed[name]) for name in base)


def test_alphas_of_each_block_are_in_the_recipe_and_the_model_keeps_its_dial(base_folder, tmp_path):
    model = make_trained(base_folder, layers=[1, 3])
    model.set_alpha({1: 0.25})
    before = copy.deepcopy(model.expansion)
    path = write_for_mergekit(model, tmp_path / "merge")
    base, donor = yaml.safe_load(path.read_text())["models"]
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(4)]
    assert [weight_of(donor, name) for name in names] == [0.0, 0.25, 0.0, 0.5]
    assert [weight_of(base, name) for name in names] == [1.0, 0.75, 1.0, 0.5]
    assert model.expansion == before
    assert model.blocks[1].dial == 0.25 and model.blocks[3].dial is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interpolator": "slerp"}, "'slerp' does not mix weights linearly"),
        ({"interpolator": "moe"}, "'moe' does not mix weights linearly"),
        ({"interpolator": "dlerp"}, "never measured"),
    ],
)
def test_what_is_no_linear_mix_is_refused(base_folder, tmp_path, settings, message):
    model = make_trained(base_folder, num_blocks=1, **settings)
    with pytest.raises(ModelError, match=message):
        write_for_mergekit(model, tmp_path / "merge")
    assert not (tmp_path / "merge").exists()


def test_added_tokens_and_unnamed_bases_are_refused(base_folder, tmp_path, pico_llama):
    model = make_trained(base_folder, num_blocks=1, expand_ends=True)
    model.resize_token_embeddings(263)
    with pytest.raises(ModelError, match="added tokens"):
        write_for_mergekit(model, tmp_path / "merge")
    with pytest.raises(ModelError, match=r"give it as `base`"):
        write_for_mergekit(expand(pico_llama(), num_blocks=1), tmp_path / "merge")
    (tmp_path / "merge").mkdir()
    (tmp_path / "merge" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError):
        write_for_mergekit(make_trained(base_folder, num_blocks=1), tmp_path / "merge")


def test_the_command_takes_a_sidecar(base_folder, tmp_path, capsys):
    make_trained(base_folder, num_blocks=1).save_sidecar(tmp_path / "sidecar")
    assert main([str(tmp_path / "sidecar"), str(tmp_path / "merge")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "merge" / "merge.yaml")
    assert (tmp_path / "merge" / "donor" / "tokenizer_config.json").is_file()
    recipe = yaml.safe_load((tmp_path / "merge" / "merge.yaml").read_text())
    assert recipe["models"][0]["model"] == str(base_folder)
    assert main([str(base_folder), str(tmp_path / "other")]) == 1
    assert "is no expanded model" in capsys.readouterr().err


def test_the_recipe_of_the_page_is_one_that_is_written(base_folder, page_configs):
    _, recipe = page_configs("mergekit")
    model = make_trained(base_folder, layers=[1, 3])
    base, donor = (entry["model"] for entry in recipe["models"])
    assert merge_recipe(model, base, donor) == recipe | {"dtype": "float32"}


# ----------------------------------------------------------------------------------------------
# The real package.


@pytest.fixture
def merge(tmp_path):
    """`merge(config)` runs mergekit and gives the merged tensors."""
    pytest.importorskip("mergekit.merge", reason="needs mergekit (not in CI)")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    def run(config):
        out = tmp_path / f"merged-{config['merge_method']}"
        options = MergeOptions(cuda=False, copy_tokenizer=False, quiet=True)
        run_merge(MergeConfiguration.model_validate(config), str(out), options)
        return tensors_of(out)

    return run


@pytest.fixture
def folders(base_folder, tmp_path):
    """The base, and two models that were trained on it and collapsed."""
    one = make_trained(base_folder, num_blocks=2)
    export(one, tmp_path / "one", "collapsed")
    export(make_trained(base_folder, layers=[0, 1], alpha=0.8), tmp_path / "two", "collapsed")
    return base_folder, tmp_path / "one", tmp_path / "two"


@pytest.mark.parametrize("variant", VARIANTS)
def test_mergekit_makes_the_collapsed_model(base_folder, tmp_path, merge, variant):
    model = make_trained(base_folder, **VARIANTS[variant])
    path = write_for_mergekit(model, tmp_path / "merge")
    merged = merge(yaml.safe_load(path.read_text()))
    collapsed = collapse(model).state_dict()
    close(merged, {name: collapsed[name] for name in merged})


def test_mergekit_slerp_is_slerp(folders, merge):
    base, one, _ = folders
    config = {
        "merge_method": "slerp",
        "base_model": str(base),
        "models": [{"model": str(base)}, {"model": str(one)}],
        "parameters": {"t": 0.3},
        "dtype": "float32",
    }
    merged, a, b = merge(config), tensors_of(base), tensors_of(one)

    def slerp(p, q):
        p, q = p.double(), q.double()
        dot = (p * q).sum() / p.norm() / q.norm()
        if dot > 0.9995:  # mergekit's threshold, past which it is linear
            return 0.7 * p + 0.3 * q
        angle = torch.acos(dot)
        return (torch.sin(0.7 * angle) * p + torch.sin(0.3 * angle) * q) / torch.sin(angle)

    for name, tensor in merged.items():
        expected = slerp(a[name], b[name])
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_mergekit_ties_is_ties(folders, merge):
    base, one, two = folders
    weights = {"parameters": {"weight": 1.0, "density": 1.0}}
    config = {
        "merge_method": "ties",
        "base_model": str(base),
        "models": [{"model": str(one)} | weights, {"model": str(two)} | weights],
        "parameters": {"normalize": True},
        "dtype": "float32",
    }
    merged, a = merge(config), tensors_of(base)
    b, c = tensors_of(one), tensors_of(two)
    for name, tensor in merged.items():
        deltas = torch.stack([(x[name].double() - a[name].double()) for x in (b, c)])
        sign = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
        agree = deltas.sign() == sign
        mean = (deltas * agree).sum(0) / agree.sum(0).clamp_min(1)
        expected = a[name].double() + mean
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_mergekit_knows_the_configs_of_the_page(page_configs):
    config = pytest.importorskip("mergekit.config", reason="needs mergekit (not in CI)")
    for page in page_configs("mergekit"):
        assert config.MergeConfiguration.model_validate(page).merge_method == page["merge_method"]
