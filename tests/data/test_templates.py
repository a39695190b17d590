"""Built-in templates write exactly the documented texts, and answers alone are targets.

The expected texts are written out by hand from public documentation. Those of `llama3` and
`mistral` were also compared once with what the makers' own packages write: `llama-models` 0.3.0
(ChatFormat) and `mistral-common` 1.13.1 (third tokenizer, fine-tuning mode); the ids of their real
tokenizers were equal, too.
"""

import copy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError, DataError
from controlllm.data.config.data_config import DataConfig
from controlllm.data.examples.render import Renderer
from controlllm.data.examples.templates import TEMPLATES, resolve_chat_template
from controlllm.data.examples.tokens import Tokenized

MARKS = [
    *("<|im_start|>", "<|im_end|>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[INST]", "[/INST]"),
]
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hé 二"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "bye"},
]

H, E = "<|start_header_id|>", "<|end_header_id|>\n\n"
INTRODUCTION = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
# Name -> (texts of a talk of two turns, with a system message and without; the same two after the
# first question alone, asking for an answer; the targets of each answer).
EXPECTED: dict[str, tuple[tuple[str, str], tuple[str, str], list[str]]] = {
    "plain": (
        (
            "<s>### System:\nBe brief.\n\n### User:\nhi\n\n### Assistant:\nhé 二</s>\n\n"
            "### User:\nmore\n\n### Assistant:\nbye</s>\n\n",
            "<s>### User:\nhi\n\n### Assistant:\nhé 二</s>\n\n"
            "### User:\nmore\n\n### Assistant:\nbye</s>\n\n",
        ),
        (
            "<s>### System:\nBe brief.\n\n### User:\nhi\n\n### Assistant:\n",
            "<s>### User:\nhi\n\n### Assistant:\n",
        ),
        ["hé 二</s>", "bye</s>"],
    ),
    "chatml": (
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
            "<|im_start|>assistant\nhé 二<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n"
            "<|im_start|>assistant\nbye<|im_end|>\n",
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhé 二<|im_end|>\n"
            "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\nbye<|im_end|>\n",
        ),
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
            "<|im_start|>assistant\n",
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        ),
        ["hé 二<|im_end|>", "bye<|im_end|>"],
    ),
    "llama2": (
        (
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nhi [/INST] hé 二 </s>"
            "<s>[INST] more [/INST] bye </s>",
            "<s>[INST] hi [/INST] hé 二 </s><s>[INST] more [/INST] bye </s>",
        ),
        (
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nhi [/INST]",
            "<s>[INST] hi [/INST]",
        ),
        [" hé 二 </s>", " bye </s>"],
    ),
    "llama3": (
        (
            f"<|begin_of_text|>{H}system{E}Be brief.<|eot_id|>{H}user{E}hi<|eot_id|>"
            f"{H}assistant{E}hé 二<|eot_id|>{H}user{E}more<|eot_id|>{H}assistant{E}bye<|eot_id|>",
            f"<|begin_of_text|>{H}user{E}hi<|eot_id|>{H}assistant{E}hé 二<|eot_id|>"
            f"{H}user{E}more<|eot_id|>{H}assistant{E}bye<|eot_id|>",
        ),
        (
            f"<|begin_of_text|>{H}system{E}Be brief.<|eot_id|>{H}user{E}hi<|eot_id|>"
            f"{H}assistant{E}",
            f"<|begin_of_text|>{H}user{E}hi<|eot_id|>{H}assistant{E}",
        ),
        ["hé 二<|eot_id|>", "bye<|eot_id|>"],
    ),
    "mistral": (
        (
            "<s>[INST] hi[/INST] hé 二</s>[INST] Be brief.\n\nmore[/INST] bye</s>",
            "<s>[INST] hi[/INST] hé 二</s>[INST] more[/INST] bye</s>",
        ),
        ("<s>[INST] Be brief.\n\nhi[/INST]", "<s>[INST] hi[/INST]"),
        [" hé 二</s>", " bye</s>"],
    ),
    "alpaca": (
        (
            "<s>Be brief.\n\n### Instruction:\nhi\n\n### Response:hé 二</s>"
            "\n\n### Instruction:\nmore\n\n### Response:bye</s>",
            f"<s>{INTRODUCTION}\n\n### Instruction:\nhi\n\n### Response:hé 二</s>"
            "\n\n### Instruction:\nmore\n\n### Response:bye</s>",
        ),
        (
            "<s>Be brief.\n\n### Instruction:\nhi\n\n### Response:",
            f"<s>{INTRODUCTION}\n\n### Instruction:\nhi\n\n### Response:",
        ),
        ["hé 二</s>", "bye</s>"],
    ),
}


@pytest.fixture(scope="module")
def chat_tokenizer(pico_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Bytes, with the marks of every template as tokens."""
    tokenizer = copy.deepcopy(pico_tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": MARKS})
    return tokenizer


def as_text(
    tokenizer: PreTrainedTokenizerBase, name: str, messages: list[Any], prompt: bool = False
) -> str:
    return str(
        tokenizer.apply_chat_template(
            messages,
            chat_template=resolve_chat_template(name, tokenizer),
            add_generation_prompt=prompt,
            tokenize=False,
        )
    )


def render(
    tokenizer: PreTrainedTokenizerBase, name: str, messages: list[Any], **settings: Any
) -> Tokenized:
    renderer = Renderer(tokenizer, DataConfig(chat_template=name, **settings))
    return renderer.tokenize([renderer.prepare(messages)])[0]


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


def test_every_template_is_expected() -> None:
    assert set(TEMPLATES.names()) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_documented_text(chat_tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    (with_system, without), (ask_with_system, ask), _ = EXPECTED[name]
    assert as_text(chat_tokenizer, name, [SYSTEM, *TALK]) == with_system
    assert as_text(chat_tokenizer, name, TALK) == without
    assert as_text(chat_tokenizer, name, [SYSTEM, TALK[0]], prompt=True) == ask_with_system
    assert as_text(chat_tokenizer, name, TALK[:1], prompt=True) == ask


@pytest.mark.parametrize("system", [True, False], ids=["system", "no_system"])
@pytest.mark.parametrize("name", EXPECTED)
def test_exactly_the_answers_are_targets(
    chat_tokenizer: PreTrainedTokenizerBase, name: str, system: bool
) -> None:
    messages = [SYSTEM, *TALK] if system else TALK
    rendered = render(chat_tokenizer, name, messages)
    template = resolve_chat_template(name, chat_tokenizer)
    own = chat_tokenizer.apply_chat_template(messages, chat_template=template, return_dict=True)
    assert rendered.input_ids.tolist() == own["input_ids"]
    assert target_texts(chat_tokenizer, rendered) == EXPECTED[name][2]


@pytest.mark.parametrize("name", EXPECTED)
def test_answers_continue_the_generation_prompt(
    chat_tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """What is trained at the last answer is what generation will ask for."""
    asked = as_text(chat_tokenizer, name, TALK[:3], prompt=True)
    answered = as_text(chat_tokenizer, name, TALK)
    answer = EXPECTED[name][2][1]
    assert answered.removesuffix("\n\n" if name == "plain" else "\n") == asked + answer


@pytest.mark.parametrize("name", EXPECTED)
def test_questions_can_be_targets(chat_tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Without the marks' help, turns of any role are found by rendering."""
    rendered = render(chat_tokenizer, name, TALK, train_on=["user"])
    texts = "".join(target_texts(chat_tokenizer, rendered))
    assert "hi" in texts and "more" in texts and "bye" not in texts and "二" not in texts


def test_white_space_around_contents(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """Cut where the makers' own code cuts it, kept elsewhere."""
    messages = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": " yes "}]
    texts = {name: as_text(chat_tokenizer, name, messages) for name in EXPECTED}
    assert texts["llama2"] == "<s>[INST] hi [/INST] yes </s>"
    assert texts["llama3"] == f"<|begin_of_text|>{H}user{E}hi<|eot_id|>{H}assistant{E}yes<|eot_id|>"
    assert texts["mistral"] == "<s>[INST]  hi [/INST]  yes</s>"
    assert texts["alpaca"].endswith("### Instruction:\n hi \n\n### Response: yes </s>")
    assert " yes <|im_end|>" in texts["chatml"] and "\n yes </s>" in texts["plain"]


def test_tool_messages_of_llama3(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    text = as_text(chat_tokenizer, "llama3", [*TALK[:2], {"role": "tool", "content": "3"}])
    assert text.endswith(f"{H}ipython{E}3<|eot_id|>")


REFUSED = [
    ([TALK[0], TALK[0]], "turn 1 is of user"),
    ([TALK[1]], "turn 0 is of assistant"),
    ([*TALK[:2], SYSTEM], "turn 2 is of system"),
    ([TALK[0], {"role": "tool", "content": "3"}], "turn 1 is of tool"),
    ([SYSTEM], "no user message"),
]


@pytest.mark.parametrize("name", ["llama2", "mistral", "alpaca"])
def test_what_has_no_place_is_refused(chat_tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    for messages, error in REFUSED:
        with pytest.raises(DataError, match=error):
            render(chat_tokenizer, name, messages)


@pytest.mark.parametrize("name", EXPECTED)
def test_tool_calls_are_not_dropped_in_silence(
    chat_tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}
    with pytest.raises(DataError, match="cannot write tool_calls"):
        render(chat_tokenizer, name, [TALK[0], call])


NEEDS = {
    "chatml": r"\['<\|im_start\|>', '<\|im_end\|>'\]",
    "llama3": r"'<\|eot_id\|>'",
    "mistral": r"\['\[INST\]', '\[/INST\]'\]",
}


@pytest.mark.parametrize("name", NEEDS)
def test_a_tokenizer_without_the_marks_is_refused(
    pico_tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*{NEEDS[name]}"):
        resolve_chat_template(name, pico_tokenizer)


@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_a_tokenizer_without_bos_is_refused(
    chat_tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.bos_token = None
    with pytest.raises(ConfigError, match=f"{name}.*bos_token"):
        resolve_chat_template(name, tokenizer)


@pytest.mark.parametrize("name", ["plain", "alpaca"])
def test_bos_comes_only_with_tokenizers_that_use_it(
    pico_tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    from tokenizers import processors

    tokenizer = copy.deepcopy(pico_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    assert as_text(pico_tokenizer, name, TALK).startswith("<s>")
    assert not as_text(tokenizer, name, TALK).startswith("<s>")
