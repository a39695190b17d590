"""The conversation: kept over changes of alpha, while the cache is not."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tests.inference.conftest import output, written_chat

from controlllm import expand
from controlllm.common.text.readable import readable
from controlllm.inference import Chat, GenerationSettings


@pytest.fixture
def chat(pico_llama: Callable, pico_tokenizer) -> Chat:
    model = expand(pico_llama(), num_blocks=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in model.trainable_parameter_groups()["expanded"]:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return written_chat(model.eval(), pico_tokenizer)


def test_turns_are_kept_and_streamed(chat: Chat) -> None:
    chat.run(["hello", "", "again"])
    roles = [message["role"] for message in chat.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert chat.messages[2]["content"] == "again"
    replies = [message["content"] for message in chat.messages[1::2]]
    assert output(chat) == "".join(f"{readable(reply)}\n" for reply in replies)


def test_alpha_changes_answers_and_keeps_the_conversation(chat: Chat) -> None:
    chat.handle("hello")
    kept = list(chat.messages)
    chat.handle("/alpha 0")
    assert chat.messages == kept
    assert chat.generator._cache is None
    assert "1: 0  3: 0" in output(chat)
    assert set(chat.model.alphas().values()) == {0.0}
    chat.handle("/alpha trained")
    assert set(chat.model.alphas().values()) == {0.5}


def test_base_answers_as_alpha_zero_and_as_the_base(chat: Chat, pico_llama, pico_tokenizer) -> None:
    plain = Chat(pico_llama(), pico_tokenizer, chat.generator.settings, lambda text: None)
    expected = plain.answer("hello")
    trained = chat.answer("hello")
    assert trained != expected
    for command in ("/base", "/alpha 0"):
        chat.handle("/reset")
        chat.handle(command)
        assert chat.answer("hello") == expected
    chat.handle("/reset")
    chat.handle("/alpha trained")
    assert chat.answer("hello") == trained


def test_alpha_alone_says_where_the_base_answers(chat: Chat) -> None:
    chat.handle("/alpha")
    assert output(chat) == "alpha by layer: 1: 0.5  3: 0.5\n"
    chat.handle("/base")
    output(chat)
    chat.handle("/alpha")
    assert output(chat).startswith("The base answers, whatever alpha is; /trained")
    chat.handle("/alpha 0.3")
    assert output(chat) == "alpha by layer: 1: 0.3  3: 0.3\n"


def test_changing_alpha_in_the_middle_equals_asking_afresh(chat: Chat) -> None:
    """A cache kept over the change would mix keys of two alphas."""
    chat.handle("hello")
    before = list(chat.messages)
    chat.handle("/alpha 0.9")
    reply = chat.answer("more")
    chat.messages = before
    chat.generator.forget()
    assert chat.answer("more") == reply


def test_reset_keeps_the_system_message(pico_llama: Callable, pico_tokenizer) -> None:
    chat = Chat(pico_llama(), pico_tokenizer, write=lambda text: None, system="Be brief.")
    chat.generator.settings = GenerationSettings(max_new_tokens=2)
    chat.handle("hello")
    assert len(chat.messages) == 3
    chat.handle("/reset")
    assert chat.messages == [{"role": "system", "content": "Be brief."}]


def test_save_appends_a_line_to_train_on(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    for _ in range(2):
        chat.handle("hello")
        chat.handle(f"/save {path}")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [len(line["messages"]) for line in lines] == [2, 4]
    assert lines[1]["messages"] == chat.messages


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/help", "/alpha 0.3"),
        ("/nonsense", "/nonsense is not a command"),
        ("/alpha much", "number from 0 to 1"),
        ("/alpha 2", "0"),
        ("/save", "needs a file name"),
    ],
)
def test_commands_answer_and_the_conversation_goes_on(chat: Chat, line: str, answer: str) -> None:
    assert chat.handle(line)
    assert answer in output(chat)
    assert chat.messages == []


def test_quit_ends(chat: Chat) -> None:
    chat.run(["/quit", "hello"], interactive=True)
    assert chat.messages == []


def test_plain_model_has_no_dial(pico_llama: Callable, pico_tokenizer) -> None:
    written: list[str] = []
    chat = Chat(pico_llama(), pico_tokenizer, write=written.append)
    for line in ("/alpha 0.5", "/base"):
        assert chat.handle(line)
    assert "".join(written).count("no expansion") == 2


def test_interrupted_answer_leaves_the_conversation_as_it_was(chat: Chat) -> None:
    chat.handle("hello")
    before = list(chat.messages)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    keep, chat.write = chat.write, interrupt
    with pytest.raises(KeyboardInterrupt):
        chat.answer("more")
    chat.write = keep
    assert chat.messages == before


def test_ctrl_c_ends_the_answer_only_when_interactive(chat: Chat) -> None:
    keep, interrupted = chat.write, []

    def interrupt_once(text: str) -> None:
        if not interrupted:
            interrupted.append(text)
            raise KeyboardInterrupt
        keep(text)

    chat.write = interrupt_once
    chat.run(["hello", "again"], interactive=True)
    assert [message["content"] for message in chat.messages[::2]] == ["again"]
    assert "this turn is forgotten" in output(chat)
    interrupted.clear()
    with pytest.raises(KeyboardInterrupt):
        chat.run(["hello"])


def test_compare_asks_both_and_keeps_nothing(chat: Chat, pico_llama, pico_tokenizer) -> None:
    plain = Chat(pico_llama(), pico_tokenizer, chat.generator.settings, lambda text: None)
    expected = plain.answer("hello"), chat.answer("hello")
    kept = list(chat.messages)
    chat.handle("more")
    following = chat.messages[-1]["content"]
    chat.messages = list(kept)
    output(chat)
    for command in ("/compare hello", "/compare"):
        chat.messages = [] if command == "/compare hello" else list(kept)
        before = list(chat.messages)
        chat.handle(command)
        text = output(chat)
        base, tuned = (readable(reply) for reply in expected)
        assert text.startswith(f"[base] {base}\n(KL(base || tuned) ")
        assert f"\n[tuned] {tuned}\n(KL(base || tuned) " in text
        assert chat.messages == before
    chat.messages = list(kept)
    chat.handle("more")
    assert chat.messages[-1]["content"] == following


def test_compare_needs_something_to_compare(chat: Chat, pico_llama, pico_tokenizer) -> None:
    chat.handle("/compare")
    assert "nothing was said yet" in output(chat)
    written: list[str] = []
    Chat(pico_llama(), pico_tokenizer, write=written.append).handle("/compare hello")
    assert "no base to compare" in "".join(written)


def test_compare_follows_the_dial(chat: Chat) -> None:
    chat.handle("/alpha 0")
    output(chat)
    chat.handle("/compare hello")
    assert output(chat).count("KL(base || tuned) 0.000 nats") == 2


def test_a_model_without_names_has_no_sidecar_to_choose(chat: Chat) -> None:
    chat.handle("/sidecar maths")
    assert "no named sidecars" in output(chat)
    chat.handle("/alpha maths=0.3")
    assert "maths" in output(chat)


def test_conversations_are_rendered_elsewhere_where_that_is_wanted(chat, pico_tokenizer) -> None:
    tokenizer = deepcopy(pico_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('this one is not asked') }}"
    asked: list[str] = []

    def render(messages) -> str:
        asked.append(messages[-1]["content"])
        return messages[-1]["content"]

    other = Chat(chat.model, tokenizer, chat.generator.settings, lambda text: None, render=render)
    assert other.answer("hello")
    assert asked == ["hello"]
