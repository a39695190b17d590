"""Named sidecars come from every place that one alone comes from, and are what they are alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from controlllm import ControlLLMForCausalLM, expand
from controlllm.checkpoint import (
    Kind,
    LoadOptions,
    TrainingState,
    describe_model,
    export,
    inspect_folder,
    load_model,
    load_named,
    locate,
    mark_best,
    save_checkpoint,
    trained_tensors,
)
from controlllm.common.errors import CheckpointError, ConfigError, ModelError

IDS = torch.tensor([[1, 40, 50, 60, 70, 80]])


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS).logits


def trained(base: PreTrainedModel, seed: int, dial: float | None = None) -> ControlLLMForCausalLM:
    """A base that was expanded and changed, as training would."""
    model = expand(base, num_blocks=2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained_tensors(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.set_alpha(dial)
    return model


def save_run(run: Path, models: list[PreTrainedModel]) -> str:
    """A run folder with a checkpoint of each model."""
    for step, model in enumerate(models, 1):
        save_checkpoint(run, TrainingState(step, trained_tensors(model), describe_model(model)))
    return str(run)


@pytest.fixture(scope="module")
def base(pico_llama: Callable, pico_tokenizer: Any, tmp_path_factory: Any) -> str:
    folder = tmp_path_factory.mktemp("named") / "base"
    pico_llama().save_pretrained(folder)
    pico_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make(base: str) -> Callable[..., ControlLLMForCausalLM]:
    return lambda *given: trained(LlamaForCausalLM.from_pretrained(base), *given)


def require_same_as_alone(base: str, places: dict[str, str]) -> dict[str, Any]:
    """Each is, with the others beside it, what `load_model` makes of it; gives the saved dials."""
    model, _, dials = load_named(base, places)
    assert model.sidecars == tuple(places)  # type: ignore[attr-defined]
    plain = logits(load_model(base)[0])
    assert torch.equal(logits(model), plain)
    for name, place in places.items():
        model.set_alpha({name: dials[name]})  # type: ignore[attr-defined]
        # Kernels sum in another order where mapped weights do not lie on a boundary of theirs.
        torch.testing.assert_close(logits(model), logits(load_model(place)[0]), atol=2e-6, rtol=0)
        assert not torch.allclose(logits(model), plain, atol=1e-3)
    return dials


def test_runs_give_their_best_or_newest_checkpoint(make, base, tmp_path) -> None:
    first = save_run(tmp_path / "first", [make(1, 0.4), make(2)])
    mark_best(tmp_path / "first", 1, {"learn_loss": 1.0})
    second = save_run(tmp_path / "second", [make(3, 0.7), make(4)])
    places = {"best": first, "newest": second, "third": f"{second}/checkpoint-1"}
    dials = require_same_as_alone(base, places)
    assert dials == {"best": 0.4, "newest": None, "third": 0.7}
    weights = tmp_path / "first" / "checkpoint-1" / "sidecar.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint-1.*sidecar\.safetensors"):
        load_named(base, {"first": f"{first}/checkpoint-1"})


def test_few_bits_and_names_on_the_hub(make, base, tmp_path, monkeypatch) -> None:
    """The Hub's local cache as `hf download` leaves it, used offline."""
    cache = tmp_path / "hub" / "models--someone--my-sidecar"
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = make(5)
    model.set_alpha(0.6)
    export(model, cache / "snapshots" / commit, "sidecar")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    for place in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{place}.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    places = {"hub": "someone/my-sidecar"}
    for bits in (1, 4):
        make(bits).save_sidecar(tmp_path / f"{bits}", bits=bits)
        places[f"bits{bits}"] = str(tmp_path / f"{bits}")
    dials = require_same_as_alone(base, places)
    assert dials == {"hub": 0.6, "bits1": None, "bits4": None}
    (cache / "refs" / "old").write_text(old := "89abcdef" * 5)
    model.set_alpha(0.2)
    export(model, cache / "snapshots" / old, "sidecar")
    named = {
        "new": "someone/my-sidecar",
        "tag": "someone/my-sidecar@old",
        "id": f"someone/my-sidecar@{old}",
    }
    assert load_named(base, named)[2] == {"new": 0.6, "tag": 0.2, "id": 0.2}
    (tmp_path / "1").rename(tmp_path / "with@sign")
    assert load_named(base, {"one": str(tmp_path / "with@sign")})[2] == {"one": None}
    with pytest.raises(ConfigError, match=r"sidecars\.one: @v2 is a revision on the Hub"):
        load_named(base, {"one": str(tmp_path / "4@v2")})
    with pytest.raises(ConfigError, match=r"sidecars\.gone: someone/else is a name on the Hugging"):
        load_named(base, {"gone": "someone/else"})


def test_what_is_no_sidecar_on_this_base_is_refused(make, base, tmp_path, pico_llama) -> None:
    peft = pytest.importorskip("peft")
    make(1).save_sidecar(tmp_path / "good")
    trained(pico_llama(seed=1), 1).save_sidecar(tmp_path / "other")
    adapted = peft.get_peft_model(
        LlamaForCausalLM.from_pretrained(base), peft.LoraConfig(target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "adapter")
    export(make(1), tmp_path / "full", "full")
    tuned = save_run(tmp_path / "tuned", [LlamaForCausalLM.from_pretrained(base)])
    wrong = {
        str(tmp_path / "adapter"): "is a PEFT adapter, not a sidecar",
        str(tmp_path / "full"): "is a full expanded model, not a sidecar",
        tuned: "is a Hugging Face model, not a sidecar",
        base: "is a Hugging Face model, not a sidecar",
    }
    good = str(tmp_path / "good")
    for place, message in wrong.items():
        with pytest.raises(ConfigError, match=rf"sidecars\.bad: {place} {message}"):
            load_named(base, {"good": good, "bad": place})
    other = {"good": good, "other": str(tmp_path / "other")}
    with pytest.raises(CheckpointError, match=r"The sidecar other .* was trained on"):
        load_named(base, other)
    loaded, _, _ = load_named(base, other, LoadOptions(check_base=False))
    assert loaded.sidecars == ("good", "other")  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="does not exist"):
        load_named(base, {"gone": str(tmp_path / "gone")})
    with pytest.raises(ConfigError, match="cannot be a sidecar's name"):
        load_named(base, {"a b": good})


def test_options_that_have_no_place_are_refused(make, base, tmp_path) -> None:
    make(1).save_sidecar(tmp_path / "one")
    one = {"one": str(tmp_path / "one")}
    with pytest.raises(ConfigError, match=r"load\.quantize_copies: not for several sidecars"):
        load_named(base, one, LoadOptions(quantize_copies="int8"))
    with pytest.raises(ConfigError, match="would not be used"):
        load_named(base, one, LoadOptions(base=base))
    model, _, _ = load_named(base, one, LoadOptions(dtype="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_one_folder_of_base_and_sidecars(make, base, tmp_path) -> None:
    make(1, 0.4).save_sidecar(tmp_path / "maths")
    make(2).save_sidecar(tmp_path / "zh")
    model, tokenizer, dials = load_named(base, {n: str(tmp_path / n) for n in ("maths", "zh")})
    folder = export(model, tmp_path / "all", "full", tokenizer)
    assert locate(folder).kind is Kind.EXPANDED
    again, _, saved = load_named(folder, {})
    assert saved == dials == {"maths": 0.4, "zh": None}
    for name in dials:
        for one in (model, again):
            one.set_alpha({name: dials[name]})  # type: ignore[attr-defined]
        assert torch.equal(logits(again), logits(model))
    with pytest.raises(ConfigError, match="is tuned itself"):
        load_named(folder, {"maths": str(tmp_path / "maths")})
    found = inspect_folder(folder)
    assert [one.dial for one in found.sidecars.values()] == [0.4, None]
    copies = [p for n, p in again.named_parameters() if ".expanded." in n or ".interpolator." in n]
    assert found.total.trained == sum(p.numel() for p in copies)
    assert found.total.trained + found.total.frozen == sum(p.numel() for p in again.parameters())
    for form in ("sidecar", "collapsed"):
        with pytest.raises(ModelError, match="several by name"):
            export(model, tmp_path / form, form)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../up"},
        {"name": 3},
        {"name": "b"},
        {"expansion": {"structure": "concat", "alpha": 7}},
        {"expansion": None},
    ],
    ids=str,
)
def test_a_config_of_several_that_was_tampered_with_is_refused(change, make, base, tmp_path):
    make(1).save_sidecar(tmp_path / "maths")
    model, _, _ = load_named(base, {n: str(tmp_path / "maths") for n in ("a", "b")})
    model.save_pretrained(tmp_path / "all")
    config = tmp_path / "all" / "config.json"
    values = json.loads(config.read_text())
    values["sidecars"][0] |= change
    config.write_text(json.dumps(values))
    with pytest.raises(
        CheckpointError, match=r"config\.json.*(sidecars|alpha=7)|of different names"
    ):
        load_model(tmp_path / "all")
    with pytest.raises(ConfigError, match=r"sidecars: |alpha=7"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "all")
