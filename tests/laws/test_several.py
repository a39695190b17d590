"""Several sidecars on one base: each alone is itself, a row may use one and the next another."""

import pytest
import torch
from safetensors.torch import load_file
from tests.laws.architectures import make_base
from tests.laws.models import greedy, prompts, train
from tests.laws.test_saving import run_script
from transformers import AutoModelForCausalLM

from controlllm import expand, load_sidecar, load_sidecars
from controlllm.common.errors import CheckpointError, ConfigError, ModelError

NAN = float("nan")
KINDS = {
    "maths": {"layers": [0, 1, 3]},
    "zh": {"structure": "stack", "layers": [1, 2]},
    "ends": {"layers": [1, 3], "interpolator": "dlerp", "expand_ends": True},
    "more": {"layers": [3], "interpolator": "slerp", "expand_ends": True},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A sidecar of each kind, on two bases."""
    root, made = tmp_path_factory.mktemp("sidecars"), {}
    for base in ("llama", "gemma2"):
        for seed, (name, settings) in enumerate(KINDS.items()):
            torch.manual_seed(seed)
            model = expand(make_base(base), **settings)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data += 0.1 * torch.randn_like(parameter)
            train(model, steps=1).save_sidecar(root / base / name)
            made[base, name] = root / base / name
    return made


def several(folders, names, base="llama"):
    return load_sidecars(make_base(base), {name: folders[base, name] for name in names})


def ids():
    return torch.randint(3, 61, (4, 7), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model):
    return model(input_ids=ids()).logits


def alone(folders, name, alpha, base="llama"):
    model = load_sidecar(make_base(base), folders[base, name]).eval()
    model.set_alpha(alpha)
    return logits(model)


@pytest.mark.parametrize("base", ["llama", "gemma2"])
def test_each_alone_is_itself_bit_for_bit(folders, base):
    model = several(folders, KINDS, base)
    assert model.sidecars == tuple(KINDS)
    assert torch.equal(logits(model), logits(make_base(base)))
    for name in KINDS:
        for alpha in (0.3, 1.0, None):
            model.set_alpha({name: alpha})
            assert torch.equal(logits(model), alone(folders, name, alpha, base))
    for off in (0, 0.0, {}, {"zh": 0}):
        model.set_alpha(off)
        assert torch.equal(logits(model), logits(make_base(base)))


@pytest.mark.parametrize("base", ["llama", "gemma2"])
def test_two_sidecars_by_row_are_each_alone(folders, base):
    model = several(folders, KINDS, base)
    model.set_alpha(
        {
            "maths": torch.tensor([0.4, 0.0, 0.0, 0.0]),
            "zh": torch.tensor([0.0, NAN, 0.0, 0.0]),
            "ends": torch.tensor([0.0, 0.0, 0.7, 0.0]),
        }
    )
    rows = logits(model)
    for row, (name, alpha) in enumerate((("maths", 0.4), ("zh", None), ("ends", 0.7))):
        single = alone(folders, name, alpha, base)[row]
        torch.testing.assert_close(rows[row], single, rtol=1e-4, atol=1e-4)
    assert torch.equal(rows[3], logits(make_base(base))[3])


def test_a_blend_adds_what_each_changes(folders):
    """By hand: a block's output is p + (m1 - p) + (m2 - p), and ends likewise."""
    model = several(folders, ("maths", "ends", "more"))
    model.set_alpha({"maths": 0.5, "ends": 0.25, "more": 0.125})
    block = model.base.model.layers[3]
    parts = dict(zip(model.sidecars, block.parts, strict=True))
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    rotary = model.base.model.rotary_emb(x, torch.arange(5)[None])
    with torch.no_grad():
        run = {"position_embeddings": rotary, "attention_mask": None}
        p = block.pretrained(x, **run)
        by_hand = p.clone()
        for name, part in parts.items():
            e = part.expanded(x, **run)
            gate = torch.full((1,), 0.5)
            if name == "ends":
                w, b = part.interpolator.weight, part.interpolator.bias
                gate = 0.25 * (torch.cat([p, e], -1) @ w.T + b).sigmoid()
            if name == "more":
                by_hand += part.interpolator.mix(p, e, torch.full((1,), 0.125)) - p
            else:
                by_hand += gate * (e - p)
        torch.testing.assert_close(block(x, **run), by_hand, rtol=1e-5, atol=1e-5)
        head, h = model.lm_head, torch.randn(1, 2, 32)
        weight = head.pretrained.weight.clone()
        for part, alpha in zip(head.parts, (0.25, 0.125), strict=True):
            weight += alpha * (part.expanded.weight - head.pretrained.weight)
        torch.testing.assert_close(head(h), h @ weight.T, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(head.weight, weight, rtol=1e-5, atol=1e-5)
        model.set_alpha({"ends": torch.tensor([0.25]), "more": torch.tensor([0.125])})
        torch.testing.assert_close(head(h), h @ weight.T, rtol=1e-5, atol=1e-5)


def test_the_base_is_held_once(folders):
    base = make_base("llama")
    own = {p.data_ptr(): p.numel() for p in base.parameters()}
    model = load_sidecars(base, {n: folders["llama", n] for n in KINDS})
    held = {p.data_ptr(): p.numel() for p in model.parameters()}
    assert own.items() <= held.items()
    read = {n: load_file(folders["llama", n] / "sidecar.safetensors") for n in KINDS}
    trained = sum(tensor.numel() for tensors in read.values() for tensor in tensors.values())
    assert sum(held.values()) == sum(own.values()) + trained
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_rows_write_what_they_write_alone(folders, kind):
    model = several(folders, ("maths", "zh"))
    model.set_alpha({"maths": torch.tensor([0.5, 0.0]), "zh": torch.tensor([0.0, 1.0])})
    together = greedy(model, cache_implementation=kind)
    for row, (name, alpha) in enumerate((("maths", 0.5), ("zh", 1.0))):
        model.set_alpha({name: alpha})
        assert torch.equal(greedy(model, cache_implementation=kind)[row], together[row])
        assert torch.equal(greedy(model, use_cache=False)[row], together[row])


def test_every_copy_has_a_slot_of_its_own_and_gaps_are_refused(folders):
    model = several(folders, KINDS)
    assert model.config.get_text_config().num_hidden_layers == 4 + 3 + 2 + 2 + 1
    model.set_alpha(dict.fromkeys(KINDS, 0.5))
    with torch.no_grad():
        cache = model(input_ids=prompts(), use_cache=True).past_key_values
        assert [layer.get_seq_length() for layer in cache.layers] == [6] * 12
        model.set_alpha({"maths": 0.5})
        model(input_ids=prompts()[:, :1], past_key_values=cache)
    model.set_alpha({"zh": 0.5})
    with pytest.raises(ModelError, match="gaps"):
        model(input_ids=prompts()[:, :1], past_key_values=cache)


def test_unload_and_disabling_give_the_base(folders):
    model = several(folders, KINDS)
    model.set_alpha({"maths": 0.5, "more": 0.5})
    with model.disable_expansion():
        assert torch.equal(logits(model), logits(make_base("llama")))
    base, fresh = model.unload(), make_base("llama")
    assert torch.equal(logits(base), logits(fresh))
    assert base.config.to_dict() == fresh.config.to_dict()
    assert base.state_dict().keys() == fresh.state_dict().keys()
    assert all(p.requires_grad for p in base.parameters())


def test_one_named_sidecar_needs_no_name(folders):
    model = several(folders, ("maths",))
    assert torch.equal(logits(model), alone(folders, "maths", None))
    for alpha in (0.3, {3: 0.1}, torch.tensor([0.0, 0.2, NAN, 1.0])):
        model.set_alpha(None)
        model.set_alpha(alpha)
        by_itself = logits(model)
        model.set_alpha({"maths": alpha})
        assert torch.equal(logits(model), by_itself)
        assert torch.equal(by_itself, alone(folders, "maths", alpha))
    assert model.expansion.layers == [0, 1, 3]


def test_a_sidecar_that_is_off_keeps_its_saved_dial(tmp_path):
    for name, dial in (("a", 0.3), ("b", {3: 0.2})):
        model = expand(make_base("llama"), layers=[1, 3])
        train(model, steps=1).set_alpha(dial)
        model.save_sidecar(tmp_path / name)
    model = load_sidecars(make_base("llama"), {n: tmp_path / n for n in "ab"})
    assert {n: e.dial for n, e in model.expansions.items()} == {"a": 0.3, "b": {3: 0.2}}
    for name in "ab":
        single = load_sidecar(make_base("llama"), tmp_path / name)
        model.set_alpha({name: model.expansions[name].dial})
        assert torch.equal(logits(model), logits(single.eval()))
    model.set_alpha({"a": {1: 0.5}})  # layer 3 keeps 0.3, though it was off
    assert {k: v for k, v in model.alphas().items() if k[0] == "a"} == {"a 1": 0.5, "a 3": 0.3}


def test_added_tokens_of_the_only_sidecar(folders, tmp_path):
    model = expand(make_base("llama"), num_blocks=2, expand_ends=True)
    model.resize_token_embeddings(63)
    train(model, steps=1).save_sidecar(tmp_path / "grown")
    one = load_sidecars(make_base("llama"), {"grown": tmp_path / "grown"})
    model.set_alpha(None)
    assert torch.equal(logits(one), logits(model))
    with pytest.raises(ModelError, match="has added tokens"):
        load_sidecars(
            make_base("llama"), {"grown": tmp_path / "grown", "zh": folders["llama", "zh"]}
        )


@pytest.mark.parametrize(
    "alpha, words",
    [
        (0.3, "does not say which sidecar"),
        (None, "does not say which sidecar"),
        ({3: 0.3}, "does not say which sidecar"),
        (torch.tensor([0.1]), "does not say which sidecar"),
        ({"math": 0.3}, "maths"),
        ({"maths": 1.2}, "1.2"),
        ({"maths": 0.2, "zh": torch.tensor([2.0])}, "alpha of row 0"),
        ({"maths": {2: 0.5}}, "layers"),
    ],
)
def test_what_is_not_clear_is_refused_and_changes_nothing(folders, alpha, words):
    model = several(folders, ("maths", "zh"))
    model.set_alpha({"zh": 0.4})
    before = logits(model)
    with pytest.raises(ConfigError, match=words):
        model.set_alpha(alpha)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("base", ["llama", "gemma2"])
def test_one_folder_holds_base_and_all_sidecars(folders, base, tmp_path):
    model = several(folders, KINDS, base)
    model.set_alpha({"zh": 0.25})
    model.save_pretrained(tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert again.sidecars == model.sidecars and not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert torch.equal(logits(again), logits(make_base(base)))  # all are off
    blend = dict.fromkeys(KINDS, 0.4)
    for alpha in ({"maths": 0.3}, {"zh": None}, {"ends": 1.0}, {"more": torch.rand(4)}, blend):
        model.set_alpha(alpha)
        again.set_alpha(alpha)
        assert torch.equal(logits(again), logits(model))
    assert again.config.text_config.num_hidden_layers == model.config.text_config.num_hidden_layers
    tensors = load_file(tmp_path / "model.safetensors")
    held = sum(p.numel() for p in model.parameters())
    assert sum(tensor.numel() for tensor in tensors.values()) == held  # each once
    assert torch.equal(logits(again.unload()), logits(make_base(base)))


def test_one_folder_keeps_each_dial_and_the_heads_of_a_tied_base(tmp_path):
    for name, dial in (("a", 0.25), ("b", {1: 0.5, -1: 0.75})):
        model = train(expand(make_base("llama-tied"), layers=[1, 3], expand_ends=True), steps=1)
        model.set_alpha(dial)
        model.save_sidecar(tmp_path / name)
    model = load_sidecars(make_base("llama-tied"), {name: tmp_path / name for name in "ab"})
    model.save_pretrained(tmp_path / "all")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "all")
    assert [one.dial for one in again.expansions.values()] == [0.25, {1: 0.5, -1: 0.75}]
    head, embedding = again.get_output_embeddings(), again.get_input_embeddings()
    for one, other in zip(head.parts, embedding.parts, strict=True):
        assert one.expanded.weight is other.expanded.weight
    assert head.pretrained.weight is embedding.pretrained.weight
    for name in "ab":
        for one in (model, again):
            one.set_alpha({name: one.expansions[name].dial})
        assert torch.equal(logits(again), logits(model))


def test_one_folder_keeps_added_tokens_of_the_only_sidecar(tmp_path):
    model = expand(make_base("llama"), layers=[1], expand_ends=True)
    model.resize_token_embeddings(70)
    train(model, steps=1).set_alpha(0.5)
    model.save_sidecar(tmp_path / "grown")
    one = load_sidecars(make_base("llama"), {"grown": tmp_path / "grown"})
    one.save_pretrained(tmp_path / "all")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "all")
    assert logits(again).shape[-1] == 70
    assert torch.equal(logits(again), logits(model.eval()))  # at the dial it was saved with


ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder + "/all", trust_remote_code=True)
model.set_alpha({"maths": 0.3, "ends": 0.5})
ids = torch.load(folder + "/ids.pt")
with torch.no_grad():
    torch.save(model(input_ids=ids).logits, folder + "/logits.pt")
"""


def test_one_folder_needs_no_package(folders, tmp_path):
    model = several(folders, KINDS)
    model.save_pretrained(tmp_path / "all")
    torch.save(ids(), tmp_path / "ids.pt")
    run_script(ALONE, tmp_path, [tmp_path])
    model.set_alpha({"maths": 0.3, "ends": 0.5})
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


def test_what_several_cannot_do_is_refused(folders, tmp_path):
    model = several(folders, ("maths", "zh"))
    for call in (
        lambda: model.save_sidecar(tmp_path / "one"),
        lambda: model.train(),
        lambda: model.resize_token_embeddings(70),
        lambda: model.record_alpha().__enter__(),
        lambda: model.probe().__enter__(),
        lambda: model.expansion,
    ):
        with pytest.raises(ModelError, match=r"load_sidecar\(base, folder\)"):
            call()
    assert not any(tmp_path.iterdir())
    model.set_alpha({"maths": 0.3})
    assert model.alphas()["maths 3"] == 0.3 and model.alphas()["zh 1"] == 0
    assert model.expansions["zh"].structure == "stack"


@pytest.mark.parametrize("name", ["", "-x", "a/b", "..", "a b", "x" * 65, 3])
def test_wrong_names_are_refused(folders, name):
    with pytest.raises(ConfigError, match="cannot be a sidecar's name"):
        load_sidecars(make_base("llama"), {name: folders["llama", "zh"]})


def test_a_list_and_an_expanded_model_are_refused(folders):
    folder = folders["llama", "zh"]
    with pytest.raises(ConfigError, match="by name"):
        load_sidecars(make_base("llama"), [folder])
    for again in (lambda m: load_sidecar(m, folder), lambda m: load_sidecars(m, {"zh": folder})):
        with pytest.raises(ModelError, match="expanded already"):
            again(several(folders, ("maths",)))


def test_a_sidecar_that_does_not_fit_leaves_the_base_as_it_was(folders, tmp_path):
    base, fresh = make_base("llama"), make_base("llama")
    with pytest.raises(CheckpointError, match="The sidecar other"):
        load_sidecars(base, {"maths": folders["llama", "maths"], "other": folders["gemma2", "zh"]})
    model = expand(make_base("llama"), num_blocks=2, freeze=["embeddings", "norm", "head"])
    model.save_sidecar(tmp_path / "thawed")
    with pytest.raises(ModelError, match="trained parts of the base itself"):
        load_sidecars(base, {"thawed": tmp_path / "thawed"})
    file = folders["llama", "more"] / "sidecar.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(CheckpointError):
            several_on(base, folders, ("maths", "more"))
    finally:
        file.write_bytes(whole)
    assert torch.equal(logits(base), logits(fresh))
    assert base.config.to_dict() == fresh.config.to_dict()
    assert base.state_dict().keys() == fresh.state_dict().keys()


@pytest.mark.parametrize("name", KINDS)
def test_the_one_that_is_on_is_looked_into(folders, name):
    model, single = (
        several(folders, KINDS),
        load_sidecar(make_base("llama"), folders["llama", name]),
    )
    model.set_alpha({name: 0.3})
    single.eval().set_alpha(0.3)
    with model.probe() as seen, single.probe() as expected:
        assert torch.equal(logits(model), logits(single))
    assert (
        seen.merged.keys() == expected.merged.keys() and seen.alpha.keys() == expected.alpha.keys()
    )
    for what in ("pretrained", "expanded", "merged", "alpha"):
        for part, value in getattr(expected, what).items():
            assert torch.equal(getattr(seen, what)[part], value)


def several_on(base, folders, names):
    return load_sidecars(base, {name: folders["llama", name] for name in names})
