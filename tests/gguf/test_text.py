"""What llama.cpp says with an exported file is what transformers says: `make test-gguf`."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from controlllm import ControlLLMForCausalLM, collapse, expand
from controlllm.checkpoint import export
from controlllm.checkpoint.models.export.converter import read_metadata
from controlllm.checkpoint.models.export.gguf import GGUF_FILE, Gguf
from controlllm.common.errors import ModelError
from controlllm.expansion import unroll

xllamacpp = pytest.importorskip("xllamacpp", reason="needs the environment of `make test-gguf`")
pytestmark = pytest.mark.gguf

PROMPTS = ("Once upon a time, there was a little", "The dog saw a big", "Lily wanted to")
WRITTEN = "<s>{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(stories260k: Path):
    return AutoTokenizer.from_pretrained(stories260k)


def changed(stories260k: Path, structure: str) -> ControlLLMForCausalLM:
    """An expanded model whose copies are some way from their blocks."""
    base = AutoModelForCausalLM.from_pretrained(stories260k)
    model = expand(base, num_blocks=2, structure=structure)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model.eval()


def server(file: Path):
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(file), 256, 1
    params.cpuparams.n_threads, params.warmup = 1, False
    return xllamacpp.Server(params)


@pytest.mark.parametrize("structure, plain", [("concat", collapse), ("stack", unroll)])
def test_greedy_text_is_that_of_transformers(stories260k, tokenizer, tmp_path, structure, plain):
    model = changed(stories260k, structure)
    flat = plain(model).eval()
    form = Gguf(outtype="f32")
    folder = export(model, tmp_path / "out", form, tokenizer)
    assert {file.name for file in folder.iterdir()} == {
        *("Modelfile", "README.md", "checksums.json", GGUF_FILE)
    }
    assert read_metadata(folder / GGUF_FILE)["llama.block_count"] == flat.config.num_hidden_layers
    made = "unrolled" if structure == "stack" else "collapsed at alpha 0.5"
    assert form.told == [
        f"the plain model is {made}",
        "pieces of words: the converter knew no order; that of the merges is in",
        "template: none, so it completes texts and does not chat (no template is invented)",
        "EOS: token 2 in the file",
        "BOS: added before texts by the file",
    ]
    llama, differ = server(folder / GGUF_FILE), 0
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        with torch.no_grad():
            out = flat.generate(**inputs, max_new_tokens=40, do_sample=False)[0]
            base = AutoModelForCausalLM.from_pretrained(stories260k)
            other = base.generate(**inputs, max_new_tokens=40, do_sample=False)[0]
        said = llama.handle_completions({"prompt": prompt, "max_tokens": 40, "temperature": 0})
        assert said["usage"]["prompt_tokens"] == length  # the same tokens, BOS once
        text = tokenizer.decode(out, skip_special_tokens=True)
        assert prompt + said["choices"][0]["text"] == text
        differ += not torch.equal(out, other)
    assert differ  # the base would have said something else


def test_a_chat_template_is_in_the_file_and_bos_comes_once(stories260k, tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = WRITTEN
    form = Gguf(outtype="f32")
    folder = export(changed(stories260k, "stack"), tmp_path / "out", form, tokenizer)
    assert read_metadata(folder / GGUF_FILE)["tokenizer.chat_template"] == WRITTEN
    assert "turns end by '</s>' (2), a stop in the Modelfile" in form.told[3]
    assert "WARNING: the template writes it, too" in form.told[4]
    messages = [{"role": "user", "content": "Once upon a time"}]
    assert form.told[0].endswith("is unrolled")
    ids = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    request = {"messages": messages, "max_tokens": 4, "temperature": 0}
    said = server(folder / GGUF_FILE).handle_chat_completions(request)
    assert said["usage"]["prompt_tokens"] == len(ids)


def test_what_the_converter_does_not_know_is_told_in_its_words(
    pico_llama, pico_tokenizer, tmp_path
):
    with pytest.raises(ModelError, match=r"cannot write this model as GGUF.*pre-tokenizer"):
        export(pico_llama(), tmp_path / "out", "gguf", pico_tokenizer)
    assert not (tmp_path / "out").exists()


def test_an_export_is_replaced_only_if_asked(stories260k, tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(stories260k)
    for overwrite in (False, True):
        folder = export(model, tmp_path / "out", "gguf", tokenizer, overwrite=overwrite)
    assert (folder / GGUF_FILE).is_file()
