"""A pico chat model with a sidecar, as SmolLM2 is one: its tokenizer has marks for turns."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from controlllm import expand
from controlllm.inference import Chat, GenerationSettings

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def written_chat(model: Any, tokenizer: Any) -> Chat:
    """A conversation of short answers; `output` tells what it has written since it last did."""
    written: list[str] = []
    chat = Chat(model, tokenizer, GenerationSettings(max_new_tokens=6), written.append)
    chat.written = written  # type: ignore[attr-defined]
    return chat


def output(chat: Chat) -> str:
    text = "".join(chat.written)  # type: ignore[attr-defined]
    chat.written.clear()  # type: ignore[attr-defined]
    return text


@pytest.fixture(scope="session")
def chat_tokenizer(pico_tokenizer) -> Any:
    tokenizer = copy.deepcopy(pico_tokenizer)
    marks = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def make_tuned(pico_llama: Callable) -> Callable[..., Any]:
    """`make_tuned(**expansion)` makes a pico model whose copies differ from their blocks."""

    def make(**expansion: Any) -> Any:
        base = pico_llama(vocab_size=261, max_position_embeddings=512)
        model = expand(base, **{"num_blocks": 2} | expansion)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for _, parameter in model.trainable_parameter_groups()["expanded"]:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        return model.eval()

    return make
