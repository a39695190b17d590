"""Several sidecars on one base in the terminal."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.inference.conftest import output, written_chat
from transformers import AutoModelForCausalLM

from controlllm import expand, load_sidecars
from controlllm.checkpoint import LoadOptions, load_named
from controlllm.common.errors import ConfigError
from controlllm.inference import Chat


@pytest.fixture(scope="module")
def folders(pico_llama: Callable, pico_tokenizer: Any, tmp_path_factory) -> dict[str, Path]:
    """A base, and two sidecars on it."""
    root = tmp_path_factory.mktemp("several")
    pico_llama().save_pretrained(root / "base")
    pico_tokenizer.save_pretrained(root / "base")
    for seed, name in enumerate(("maths", "zh")):
        model = expand(AutoModelForCausalLM.from_pretrained(root / "base"), num_blocks=2)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in model.trainable_parameter_groups()["expanded"]:
                parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
        if name == "zh":
            model.set_alpha(0.8)  # as calibrate would
        model.save_sidecar(root / name)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def chat(folders, pico_llama: Callable, pico_tokenizer: Any) -> Chat:
    model = load_sidecars(pico_llama(), {name: folders[name] for name in ("maths", "zh")})
    made = written_chat(model, pico_tokenizer)
    made.dials = {"zh": 0.8}
    return made


def test_each_sidecar_answers_as_if_it_were_alone(chat, folders, pico_llama, pico_tokenizer):
    replies = {}
    for name in ("maths", "zh"):
        alone = load_sidecars(pico_llama(), {name: folders[name]})
        only = Chat(alone, pico_tokenizer, chat.generator.settings, lambda text: None)
        chat.handle(f"/sidecar {name}")
        assert f"{name} (answers)" in output(chat)
        chat.handle("/reset")
        replies[name] = chat.answer("hello")
        assert replies[name] == only.answer("hello")
    assert replies["maths"] != replies["zh"]


def test_the_first_answers_at_first_and_alpha_is_its_own(chat) -> None:
    chat.handle("/sidecar")
    assert output(chat) == "sidecars: maths (answers), zh\n"
    chat.handle("/alpha 0.3")
    assert {k.split()[0]: v for k, v in chat.model.alphas().items()} == {"maths": 0.3, "zh": 0.0}
    chat.handle("/alpha maths=0.3 zh=0.2")
    assert {k.split()[0]: v for k, v in chat.model.alphas().items()} == {"maths": 0.3, "zh": 0.2}
    output(chat)
    chat.handle("/sidecar zh")
    assert {k.split()[0]: v for k, v in chat.model.alphas().items()} == {"maths": 0.0, "zh": 0.8}
    chat.handle("/alpha maths=0.3 zh=0.2")
    output(chat)
    chat.handle("/sidecar mths")
    assert "maths" in output(chat)
    chat.handle("/sidecar")
    assert output(chat) == "sidecars: maths (answers), zh (answers)\n"


@pytest.mark.parametrize(
    "typed, words",
    [
        ("maths=0.3 0.4", "/alpha maths=0.3 0.4: give a number"),
        ("maths = 0.3", "/alpha maths = 0.3: give a number"),
        ("maths=0.3,zh=0.2", "one per sidecar, as in"),
        ("maths=0.3 maths=0.4", "named twice"),
    ],
)
def test_an_alpha_that_cannot_be_read_changes_nothing(chat, typed, words) -> None:
    before = chat.model.alphas()
    chat.handle(f"/alpha {typed}")
    assert words in output(chat)
    assert chat.model.alphas() == before


def test_they_are_loaded_from_folders_on_a_plain_base(folders) -> None:
    base, maths = str(folders["base"]), str(folders["maths"])
    model, _, dials = load_named(base, {"maths": maths, "zh": str(folders["zh"])})
    assert model.sidecars == ("maths", "zh")
    assert dials == {"maths": None, "zh": 0.8}
    with pytest.raises(ConfigError, match="tuned itself"):
        load_named(maths, {"zh": str(folders["zh"])})
    with pytest.raises(ConfigError, match="not a sidecar"):
        load_named(base, {"zh": base})
    with pytest.raises(ConfigError, match="would not be used"):
        load_named(base, {"zh": str(folders["zh"])}, LoadOptions(base=maths))


def test_serve_takes_them_as_options(folders, monkeypatch, capsys) -> None:
    """All of the verb but the socket."""
    pytest.importorskip("fastapi")
    from controlllm.cli import serve as verb
    from controlllm.inference.serve import make_app

    def listen(app: Any, tell: Callable[[str, int], None]) -> None:
        tell("127.0.0.1", 8000)
        asyncio.run(app.state.service.engine.close())

    monkeypatch.setattr(verb, "_server", lambda: (make_app, listen))
    maths, zh = (["--sidecars." + name, str(folders[name])] for name in ("maths", "zh"))
    verb.run([str(folders["base"]), *maths, *zh, "--load.device", "cpu"])
    assert "models: base, maths, zh\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"--sidecars\.maths is given twice"):
        verb.run([str(folders["base"]), *maths, *maths])
    with pytest.raises(ConfigError, match=r"sidecars\.zh: .* is a Hugging Face model, not a side"):
        verb.run([str(folders["base"]), *maths, "--sidecars.zh", str(folders["base"])])
