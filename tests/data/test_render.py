"""Conversations render to the template's own ids; targets are exactly what the model must write."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError, DataError
from controlllm.data import DataConfig, resolve_chat_template
from controlllm.data.examples.render import Renderer
from controlllm.data.examples.tokens import Tokenized

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Assistant: user said hi\n\nhi"},
    {"role": "assistant", "content": "hé 二"},
    {"role": "user", "content": "hé 二"},
    {"role": "assistant", "content": "bye </think> hi"},
]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Says nothing to ask for an answer, refuses a system message alone and roles out of turn.
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}"
    "{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' }}{% if loop.first and system %}"
    "{{ '<<SYS>>' + system + '<</SYS>> ' }}{% endif %}{{ m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
    "{% if turns | length == 0 %}{{ raise_exception('no turns') }}{% endif %}"
)
# Writes an empty reasoning chunk before the last answer only, so earlier turns change later on.
REASONING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content.split('</think>')[-1] | trim }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# No beginning is ever a prefix of the whole, and an answer is more than its content.
COUNTING = (
    "{{ messages | length }}{% for m in messages %}{{ ' ' + m.role + ': ' }}"
    "{% if m.role == 'assistant' %}{{ '(so) ' }}{% endif %}{{ m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' assistant: ' }}{% endif %}"
)
EXPECTED: dict[str, tuple[str, list[str]]] = {
    "chatml": (CHATML, ["hé 二<|im_end|>", "bye </think> hi<|im_end|>"]),
    "llama2": (LLAMA2, [" hé 二 </s>", " bye </think> hi </s>"]),
    "counting": (COUNTING, ["(so) hé 二<|im_end|>", "(so) bye </think> hi<|im_end|>"]),
    "reasoning": (REASONING, ["hé 二<|im_end|>", "<think>\n\n</think>\n\nhi<|im_end|>"]),
}


@pytest.fixture(scope="module")
def chat_tokenizer(pico_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Bytes, with the two tokens of ChatML."""
    import copy

    tokenizer = copy.deepcopy(pico_tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def render(tokenizer: PreTrainedTokenizerBase, document: Any, **settings: Any) -> Tokenized:
    renderer = Renderer(tokenizer, DataConfig(**settings))
    return renderer.tokenize([renderer.prepare(document)])[0]


def target_texts(tokenizer: PreTrainedTokenizerBase, rendered: Tokenized) -> list[str]:
    """The text of each run of targets."""
    runs: list[list[int]] = []
    before = False
    for token, target in zip(
        rendered.input_ids.tolist(),
        [label != -100 for label in rendered.labels.tolist()],
        strict=True,
    ):
        if target:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = target
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", EXPECTED)
def test_answers_are_found_in_any_template(
    chat_tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    template, answers = EXPECTED[name]
    rendered = render(chat_tokenizer, TALK, chat_template=template)
    own = chat_tokenizer.apply_chat_template(TALK, chat_template=template, return_dict=True)
    assert rendered.input_ids.tolist() == own["input_ids"]
    assert target_texts(chat_tokenizer, rendered) == answers


@pytest.mark.parametrize("name", ["plain", "chatml"])
def test_built_in_templates(chat_tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """By their marks and by rendering the beginnings, the same answers are found."""
    template = resolve_chat_template(name, chat_tokenizer)
    end = {"plain": "</s>", "chatml": "<|im_end|>"}[name]
    answers = [f"hé 二{end}", f"bye </think> hi{end}"]
    for text in (
        template,
        template.replace("{% generation %}", "").replace("{% endgeneration %}", ""),
    ):
        rendered = render(chat_tokenizer, TALK, chat_template=text)
        own = chat_tokenizer.apply_chat_template(TALK, chat_template=text, return_dict=True)
        assert rendered.input_ids.tolist() == own["input_ids"]
        assert target_texts(chat_tokenizer, rendered) == answers


def test_other_roles_are_trained_with_their_headers(
    chat_tokenizer: PreTrainedTokenizerBase,
) -> None:
    rendered = render(chat_tokenizer, TALK[:3], chat_template=CHATML, train_on=["user"])
    assert target_texts(chat_tokenizer, rendered) == [
        "<|im_start|>user\nAssistant: user said hi\n\nhi<|im_end|>"
    ]
    everyone = ["system", "user", "assistant"]
    rendered = render(chat_tokenizer, TALK[:3], chat_template=CHATML, train_on=everyone)
    assert rendered.labels[0] == -100
    runs = target_texts(chat_tokenizer, rendered)
    assert [run.count("<|im_start|>") for run in runs] == [0, 1, 0]
    assert runs[2] == "hé 二<|im_end|>"


def test_the_tokenizers_own_template_comes_first(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    import copy

    tokenizer = copy.deepcopy(chat_tokenizer)
    assert "### " in resolve_chat_template(None, tokenizer)
    tokenizer.chat_template = CHATML
    assert resolve_chat_template(None, tokenizer) == CHATML
    (tmp_path / "mine.jinja").write_text(LLAMA2)
    assert resolve_chat_template(str(tmp_path / "mine.jinja"), tokenizer) == LLAMA2


def test_wrong_templates(pico_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'plain'"):
        resolve_chat_template("plan", pico_tokenizer)
    with pytest.raises(ConfigError, match=r"none\.jinja"):
        resolve_chat_template("none.jinja", pico_tokenizer)
    with pytest.raises(ConfigError, match="im_start"):
        resolve_chat_template("chatml", pico_tokenizer)


def test_a_template_that_refuses_says_so(pico_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="roles must alternate"):
        render(pico_tokenizer, TALK[1:2] * 2, chat_template=LLAMA2)
    blind = "{% for m in messages %}{{ messages | length }}{% endfor %}"
    with pytest.raises(DataError, match="does not show the content of message 2"):
        render(pico_tokenizer, TALK[:3], chat_template=blind)


def test_plain_text_ends_with_eos_and_is_all_target(
    pico_tokenizer: PreTrainedTokenizerBase,
) -> None:
    rendered = render(pico_tokenizer, "hé")
    assert rendered.input_ids.tolist() == [*pico_tokenizer("hé").input_ids, 2]
    assert rendered.labels.tolist() == [-100, *rendered.input_ids[1:].tolist()]
    assert rendered.is_text


def test_batches_keep_the_order(pico_tokenizer: PreTrainedTokenizerBase) -> None:
    renderer = Renderer(pico_tokenizer, DataConfig())
    documents: list[Any] = ["a", TALK, "b", "c", TALK[:3]]
    together = renderer.tokenize([renderer.prepare(document) for document in documents])
    for document, rendered in zip(documents, together, strict=True):
        alone = render(pico_tokenizer, document)
        assert alone.input_ids.tolist() == rendered.input_ids.tolist()
        assert alone.labels.tolist() == rendered.labels.tolist()


def test_a_tokenizer_without_eos_is_refused(pico_tokenizer: PreTrainedTokenizerBase) -> None:
    import copy

    tokenizer = copy.deepcopy(pico_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="eos_token"):
        Renderer(tokenizer, DataConfig())


def test_a_real_template_with_reasoning_and_tools(shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "minimind6400")
    talk = [
        {"role": "user", "content": "几点了？"},
        {"role": "assistant", "content": "<think>用户问时间</think>现在三点。"},
        {"role": "user", "content": "谢谢"},
        {"role": "assistant", "content": "不客气"},
    ]
    rendered = render(tokenizer, talk)
    assert rendered.input_ids.tolist() == tokenizer.apply_chat_template(talk)["input_ids"]
    answers = target_texts(tokenizer, rendered)
    assert [answer.endswith("<|im_end|>") for answer in answers] == [True, True]
    assert "现在三点。" in answers[0] and "用户问时间" in answers[0]
    assert "不客气" in answers[1] and "谢谢" not in "".join(answers)
