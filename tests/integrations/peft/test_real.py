"""Real weights, taught real text by several adapters, saved and opened by every road."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from controlllm import load_sidecar
from controlllm.common.errors import ModelError
from controlllm.integrations.peft import (
    ControlLLMPeftConfig,
    adapter_to_sidecar,
    adapters_of,
    sidecar_to_adapter,
)

STEPS, ROWS, LENGTH = 12, 8, 64


@pytest.fixture(scope="module")
def tokenizer(stories260k):
    return AutoTokenizer.from_pretrained(stories260k)


@pytest.fixture(scope="module")
def shakespeare(tokenizer, shared_data):
    """Pieces of 64 real tokens; the last rows are for measuring."""
    text = (shared_data / "text" / "tinyshakespeare" / "input.txt").read_text()[:60_000]
    ids = torch.tensor(tokenizer(text)["input_ids"])
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def teach(model, rows):
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for batch in rows[: STEPS * ROWS].split(ROWS):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.fixture(scope="module")
def taught(stories260k, shakespeare, tmp_path_factory):
    """A base with two adapters, taught one after the other, and the folder they are saved in."""
    base = AutoModelForCausalLM.from_pretrained(stories260k)
    torch.manual_seed(0)
    model = get_peft_model(base, ControlLLMPeftConfig(num_blocks=5, divergence="nmse"), "blocks")
    teach(model, shakespeare)
    settings = ControlLLMPeftConfig(layers=[1, 3], interpolator="dlerp", expand_ends=True)
    model.add_adapter("ends", settings)
    model.set_adapter("ends")
    teach(model, shakespeare)
    folder = tmp_path_factory.mktemp("adapters")
    model.save_pretrained(str(folder))
    return model, folder


@torch.no_grad()
def loss(model, rows):
    return model(input_ids=rows, labels=rows).loss.item()


@torch.no_grad()
def run(model, rows):
    return model(input_ids=rows).logits


def test_they_learn_and_the_base_stays(taught, stories260k, shakespeare):
    model, _ = taught
    base = AutoModelForCausalLM.from_pretrained(stories260k)
    rows = shakespeare[-16:]
    for name in ("blocks", "ends"):
        model.set_adapter(name)
        assert loss(model, rows) < loss(base, rows) - 0.5
    with model.disable_adapter():
        assert torch.equal(run(model, rows), run(base, rows))
    ours = {n.replace(".base_layer", ""): p for n, p in base.state_dict().items()}
    for name, tensor in model.get_base_model().state_dict().items():
        if "controlllm_parts" not in name:
            assert torch.equal(tensor, ours[name.replace(".base_layer", "")])


@pytest.mark.parametrize("name", ["blocks", "ends"])
def test_every_road_gives_the_same_logits(taught, stories260k, shakespeare, tmp_path, name):
    model, folder = taught
    model.set_adapter(name)
    rows = shakespeare[-16:]
    wanted = run(model, rows)

    def base():
        return AutoModelForCausalLM.from_pretrained(stories260k)

    assert torch.equal(run(PeftModel.from_pretrained(base(), folder / name, "x"), rows), wanted)
    assert torch.equal(run(AutoModelForCausalLM.from_pretrained(folder / name), rows), wanted)
    adapter_to_sidecar(folder / name, tmp_path / "sidecar")
    expanded = load_sidecar(base(), tmp_path / "sidecar")
    assert torch.equal(run(expanded, rows), wanted)
    sidecar_to_adapter(tmp_path / "sidecar", tmp_path / "back")
    assert torch.equal(run(PeftModel.from_pretrained(base(), tmp_path / "back"), rows), wanted)


@pytest.mark.parametrize("name", ["blocks", "ends"])
def test_generation_with_each_adapter(taught, tokenizer, name):
    model, _ = taught
    model.set_adapter(name)
    prompt = tokenizer("ROMEO:", return_tensors="pt")
    options = {**prompt, "max_new_tokens": 24, "do_sample": False}
    cached = model.generate(**options)
    assert torch.equal(cached, model.generate(**options, use_cache=False))
    with model.disable_adapter():
        assert not torch.equal(cached[:, :20], model.generate(**options)[:, :20])


def test_merging_the_first_keeps_what_it_learned(taught, stories260k, shakespeare):
    _, folder = taught
    base = AutoModelForCausalLM.from_pretrained(stories260k)
    rows = shakespeare[-16:]
    before, model_size = loss(base, rows), base.num_parameters()
    model = PeftModel.from_pretrained(base, folder / "blocks")
    expanded = loss(model, rows)
    merged = model.merge_and_unload()
    assert merged.num_parameters() == model_size
    assert loss(merged, rows) < before - 0.5
    assert loss(merged, rows) == pytest.approx(expanded, abs=0.2)
    assert not hasattr(merged, "peft_config")
    with pytest.raises(ModelError, match="no Control LLM adapters"):
        adapters_of(merged)
