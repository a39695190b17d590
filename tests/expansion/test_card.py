import pytest
import yaml

from controlllm import ExpansionConfig, expand
from controlllm.expansion.files.card import model_card


def card_of(pico_llama, form, **base):
    model = expand(pico_llama(), ExpansionConfig(layers=[1, 3], expand_ends=True, dial=0.3))
    model.config.base |= base
    return model_card(model.config, form)


@pytest.mark.parametrize("form", ["full", "sidecar", "collapsed"])
def test_the_metadata_is_yaml_that_the_hub_reads(pico_llama, form):
    card = card_of(pico_llama, form, name_or_path="meta-llama/Llama-3.1-8B")
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    metadata = yaml.safe_load(front)
    assert metadata["library_name"] == ("transformers" if form == "collapsed" else "controlllm")
    assert metadata["base_model"] == "meta-llama/Llama-3.1-8B"
    assert body.lstrip().startswith(f"# Llama-3.1-8B, expanded by Control LLM ({form})")


def test_it_says_how_the_model_was_made(pico_llama):
    card = card_of(
        pico_llama, "sidecar", name_or_path="org/base", revision="abc123", fingerprint="0f"
    )
    for said in (
        "| layers | [1, 3] |",
        "| interpolator | lerp |",
        "| dial | 0.3 |",
        "abc123",
        "0f",
    ):
        assert said in card
    assert 'load_sidecar(base, "this-folder")' in card
    assert 'from_pretrained("org/base")' in card


@pytest.mark.parametrize("name", ["/models/org/base", "./base", "", None])
def test_a_local_base_is_no_hub_name(pico_llama, name):
    card = card_of(pico_llama, "full", name_or_path=name)
    assert "base_model:" not in card
    assert "/models" not in card  # a path of one machine is nobody else's business


def test_code_in_the_card_is_code(pico_llama):
    for form in ("full", "sidecar", "collapsed"):
        code = card_of(pico_llama, form).split("```python\n")[1].split("```")[0]
        compile(code, form, "exec")


def test_a_collapsed_card_offers_no_dial(pico_llama):
    assert "set_alpha" not in card_of(pico_llama, "collapsed")
    assert "approximation" in card_of(pico_llama, "collapsed")
