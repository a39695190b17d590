"""Sidecars in few bits: what is packed, what comes back, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.laws.architectures import VOCAB, make_base
from tests.laws.models import base_logits, logits, make_trained, train
from tests.trust.schemas_helpers import edit, edit_tensors
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from controlllm import ExpansionConfig, collapse, combine, expand, load_sidecar, load_sidecars
from controlllm.common.errors import CheckpointError, ConfigError, ModelError
from controlllm.common.storage.checksums import write_checksums
from controlllm.expansion.files.few_bits import BITS
from controlllm.expansion.files.packed import packed_bits, stored_bytes
from controlllm.expansion.files.records import SETTINGS_DIGEST, function_digest
from controlllm.expansion.files.sidecar import read_sidecar_tensors, sidecar_tensors
from controlllm.integrations.peft import sidecar_to_adapter

FILES = ("sidecar.safetensors", "sidecar_config.json", "README.md", "checksums.json")
VARIANTS = [
    *(("llama", "hybrid"), ("llama", "dlerp")),
    *(("qwen3-moe", "ends"), ("gpt2", "stack")),
]


@pytest.mark.parametrize("name, variant", VARIANTS)
def test_what_comes_back(name, variant, tmp_path):
    """The base is the base, more bits are nearer, and an export of it is the same file."""
    model = make_trained(name, variant)
    far = (base_logits(name) - logits(model)).norm()
    errors = []
    for bits in BITS:
        model.save_sidecar(tmp_path / f"{bits}", bits=bits)
        again = load_sidecar(make_base(name), tmp_path / f"{bits}")
        assert packed_bits(again) == bits
        errors.append(float((logits(again) - logits(model)).norm() / far))
        again.save_sidecar(tmp_path / "again", bits=bits)
        for file in FILES:
            first, second = (tmp_path / folder / file for folder in (f"{bits}", "again"))
            assert first.read_bytes() == second.read_bytes()
        shutil.rmtree(tmp_path / "again")
        again.set_alpha(0.0)
        assert torch.equal(logits(again), base_logits(name))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


def test_each_matrix_is_its_twin_and_the_difference(tmp_path):
    """One bit by hand: the twin, plus the sign of the difference times its row's mean magnitude."""
    model = make_trained("llama", "hybrid")
    model.save_sidecar(tmp_path, bits=1)
    own, saved = sidecar_tensors(model), read_sidecar_tensors(tmp_path)
    again = sidecar_tensors(load_sidecar(make_base("llama"), tmp_path))
    kinds = {block.layer: type(block).__name__ for block in model.blocks.values()}
    assert set(kinds.values()) == {"StackBlock", "ConcatBlock"}
    for layer, kind in kinds.items():
        name = f"model.layers.{layer}.expanded.mlp.down_proj.weight"
        twin = make_base("llama").model.layers[layer].mlp.down_proj.weight
        twin = torch.zeros_like(twin) if kind == "StackBlock" else twin
        difference = own[name] - twin
        scales = difference.abs().mean(-1).bfloat16().float()
        expected = twin + torch.where(difference < 0, -1.0, 1.0) * scales[:, None]
        torch.testing.assert_close(again[name], expected, rtol=1e-2, atol=1e-6)
        assert name not in saved
        norm = f"model.layers.{layer}.expanded.input_layernorm.weight"
        assert torch.equal(saved[norm], own[norm])


def test_bytes_are_those_that_shapes_say(tmp_path):
    model = make_trained("llama", "ends")
    for bits in (None, *BITS):
        folder = tmp_path / f"{bits}"
        model.save_sidecar(folder, bits=bits)
        found = sum(t.nbytes for t in read_sidecar_tensors(folder).values())
        assert found == stored_bytes(model, sidecar_tensors(model), bits)


def test_added_tokens_stay_whole(tmp_path):
    model = make_trained("llama", "ends")
    model.resize_token_embeddings(VOCAB + 3)
    train(model)
    model.save_sidecar(tmp_path, bits=2)
    again = load_sidecar(make_base("llama"), tmp_path)
    rows = [one.get_input_embeddings().expanded.weight for one in (model, again)]
    assert torch.equal(rows[0][VOCAB:], rows[1][VOCAB:])
    assert not torch.equal(rows[0][:VOCAB], rows[1][:VOCAB])
    ids = torch.tensor([[5, VOCAB, 7, VOCAB + 2]])
    assert torch.isfinite(again(input_ids=ids).logits[:, :, VOCAB:]).all()


def test_what_trains_in_place_stays_whole(tmp_path):
    """Where the twin trains, too, there is no frozen weight to differ from."""
    model = train(expand(make_base("llama"), ExpansionConfig(num_blocks=2, freeze=["norm"])))
    with pytest.raises(ModelError, match="no trained matrix of this model has a frozen one"):
        model.save_sidecar(tmp_path, bits=1)
    config = ExpansionConfig(num_blocks=2, freeze=["blocks", "norm"])
    model = train(expand(make_base("llama"), config))
    model.save_sidecar(tmp_path, bits=4)
    again = load_sidecar(make_base("llama"), tmp_path)
    ours, theirs = (one.get_input_embeddings().weight for one in (model, again))
    assert torch.equal(ours, theirs)


def test_training_goes_on_and_what_changed_is_packed_anew(tmp_path):
    model = make_trained("llama")
    model.save_sidecar(tmp_path / "small", bits=2)
    again = load_sidecar(make_base("llama"), tmp_path / "small")
    before = {name: tensor.clone() for name, tensor in sidecar_tensors(again).items()}
    train(again, steps=1)
    again.save_sidecar(tmp_path / "more", bits=2)
    more = sidecar_tensors(load_sidecar(make_base("llama"), tmp_path / "more"))
    name = "model.layers.1.expanded.mlp.down_proj.weight"
    own = sidecar_tensors(again)[name]
    assert (more[name] - own).norm() < 0.5 * (before[name] - own).norm() + 0.4 * own.norm()
    assert not torch.equal(more[name], before[name])
    again.save_sidecar(tmp_path / "whole")
    whole = load_sidecar(make_base("llama"), tmp_path / "whole")
    assert packed_bits(whole) is None
    assert torch.equal(logits(whole), logits(again))


def test_collapse_and_combine_take_them_as_they_are(tmp_path):
    model = make_trained("llama", "ends")
    model.save_sidecar(tmp_path / "small", bits=4)
    model.save_sidecar(tmp_path / "whole")
    small, whole = (load_sidecar(make_base("llama"), tmp_path / n) for n in ("small", "whole"))
    far = (base_logits("llama") - logits(model)).norm()
    for one, other in ((collapse(small), collapse(whole)), (combine(small, whole), whole)):
        assert (logits(one) - logits(other)).norm() < 0.1 * far


def test_several_on_one_base(tmp_path):
    model = make_trained("llama", "ends")
    model.save_sidecar(tmp_path / "small", bits=2)
    model.save_sidecar(tmp_path / "whole")
    folders = {name: tmp_path / name for name in ("small", "whole")}
    both = load_sidecars(make_base("llama"), folders)
    for name, folder in folders.items():
        both.set_alpha({name: None})
        assert torch.equal(logits(both), logits(load_sidecar(make_base("llama"), folder)))


def test_a_base_in_bfloat16_gets_sums_in_bfloat16(tmp_path):
    base = make_base("llama").bfloat16()
    model = train(expand(base, num_blocks=2))
    model.save_sidecar(tmp_path / "one", bits=2)
    again = load_sidecar(make_base("llama").bfloat16(), tmp_path / "one")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    again.save_sidecar(tmp_path / "two", bits=2)
    first, second = (tmp_path / name / FILES[0] for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    packed = json.loads((tmp_path / "one" / FILES[1]).read_text())["packed"]
    assert (packed["bits"], packed["dtype"]) == (2, "bfloat16")


@pytest.mark.parametrize("bits", [0, 3, 8, True])
def test_other_numbers_of_bits_are_refused(bits, tmp_path):
    with pytest.raises(ConfigError, match="allowed: 1, 2, 4"):
        make_trained("llama").save_sidecar(tmp_path, bits=bits)


def test_without_its_base_it_cannot_become_an_adapter(tmp_path):
    make_trained("llama").save_sidecar(tmp_path / "small", bits=2)
    with pytest.raises(CheckpointError, match="in 2 bits, which is read beside its base only"):
        sidecar_to_adapter(tmp_path / "small", tmp_path / "adapter")


def test_a_quantised_base_is_refused_both_ways(tmp_path, pico_llama):
    pytest.importorskip("bitsandbytes")
    pico_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    load = AutoModelForCausalLM.from_pretrained
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    full, beside = load(tmp_path / "base"), load(tmp_path / "base", quantization_config=config)
    model = train(expand(full, num_blocks=2))
    model.save_sidecar(tmp_path / "small", bits=2)
    with pytest.raises(ModelError, match="the base of this model is quantised"):
        load_sidecar(beside, tmp_path / "small")
    assert type(beside).__name__ == "LlamaForCausalLM"
    with pytest.raises(ModelError, match="the base of this model is quantised"):
        expand(beside, num_blocks=2).save_sidecar(tmp_path / "other", bits=2)


NAME = "model.layers.1.expanded.mlp.down_proj.weight"


def _cut(tensors):
    tensors[f"{NAME}.codes"] = tensors[f"{NAME}.codes"][:, 1:].contiguous()


def _empty(tensors):
    tensors[f"{NAME}.codes"] = torch.zeros(10**9, 0, dtype=torch.uint8)


def _without_scales(tensors):
    del tensors[f"{NAME}.scales"]


def _no_number(tensors):
    tensors[f"{NAME}.scales"][0] = torch.nan


def _too_large(tensors):
    tensors[f"{NAME}.scales"][0] = torch.finfo(torch.bfloat16).max


def _more(tensors):
    tensors["model.layers.1.expanded.more.codes"] = torch.zeros(2, 2, dtype=torch.uint8)


def _twice(tensors):
    tensors[NAME] = torch.zeros(2, 2)


def _added(tensors):
    tensors[f"{NAME}.added"] = torch.zeros(1, 2)


def _other_codes(tensors):
    tensors[f"{NAME}.codes"] = tensors[f"{NAME}.codes"].to(torch.int64)


def _other_scales(tensors):
    tensors[f"{NAME}.scales"] = tensors[f"{NAME}.scales"].float()


@pytest.mark.parametrize(
    "change, message",
    [
        (_cut, r"down_proj\.weight\.codes has shape"),
        (_empty, r"down_proj\.weight\.codes has shape"),
        (_without_scales, r"missing .*down_proj\.weight\.scales"),
        (_no_number, r"scales holds values that are not numbers"),
        (_too_large, r"down_proj\.weight holds values that are not numbers"),
        (_more, r"left over .*more\.codes"),
        (_twice, r"left over .*down_proj\.weight"),
        (_added, r"left over .*down_proj\.weight\.added"),
        (_other_codes, r"codes is of torch\.int64"),
        (_other_scales, r"scales is of torch\.float32"),
    ],
)
def test_tensors_that_do_not_fit_leave_the_base_alone(change, message, tmp_path):
    make_trained("llama").save_sidecar(tmp_path, bits=2)
    edit_tensors(tmp_path / FILES[0], change)
    _refused(tmp_path, message)


def _columns(name, value):
    return lambda values: values["packed"]["columns"].update({name: value})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda values: values["packed"].update(bits=3), r"packed\.bits=3"),
        (lambda values: values["packed"].update(bits=4), "codes has shape"),
        (lambda values: values["packed"].update(dtype="uint8"), r"packed\.dtype='uint8'"),
        (lambda values: values.update(format=2), "does not go together"),
        (lambda values: values.update(format=4), "this version reads 2 and, in few bits, 3"),
        (lambda values: values.pop("packed"), "does not go together"),
        (_columns(NAME, 2**23), r"says 8388608 of .*down_proj\.weight"),
        (_columns(NAME, 10**12), "from 0 to"),
        (_columns("model.layers.1.expanded.nothing", 4), "are no copies of frozen matrices"),
        (_columns("model.layers.1.expanded.input_layernorm.weight", 4), "are no copies of frozen"),
        (lambda values: values["base"].update(grown_vocab_size=10**7), "no tensor has so many"),
    ],
)
def test_settings_that_do_not_fit_leave_the_base_alone(change, message, tmp_path):
    """By one who knows how the digest is made; without that, any change is refused by it."""
    make_trained("llama").save_sidecar(tmp_path, bits=2)
    edit(tmp_path / FILES[1], change)
    if json.loads((tmp_path / FILES[1]).read_text()).get("packed", {}).get("bits") == 4:
        _refused(tmp_path, "not those that sidecar.safetensors was written with", sign=False)
    _refused(tmp_path, message)


def _refused(folder: Path, message: str, sign: bool = True) -> None:
    if sign:
        _sign_again(folder)
    write_checksums(folder)
    base = make_base("llama")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_sidecar(base, folder)
    assert len(str(caught.value)) < 1500
    assert type(base).__name__ == "LlamaForCausalLM"
    assert torch.equal(logits(base), base_logits("llama"))


def _sign_again(folder: Path) -> None:
    """The digest of the settings as it would be written now."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / FILES[0])
    values = json.loads((folder / FILES[1]).read_text())
    save_file(tensors, folder / FILES[0], {SETTINGS_DIGEST: function_digest(values)})
