"""Streaming generation against plain `generate`, with and without a cache from earlier turns."""

import random
from collections.abc import Callable

import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from controlllm import expand
from controlllm.common.errors import ConfigError
from controlllm.inference import GenerationSettings, Generator
from controlllm.inference.decoding import TextDecoder
from controlllm.inference.generate import prompt_ids

SETTINGS = GenerationSettings(max_new_tokens=8)


def greedy(model, ids_BT: torch.Tensor, tokens: int = 8) -> list[int]:
    """Greedy decoding by hand, without any cache."""
    ids = ids_BT.clone()
    with torch.no_grad():
        for _ in range(tokens):
            following = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat([ids, following[None, None]], dim=1)
            if following == 2:
                break
    return ids[0].tolist()


@pytest.fixture
def model(pico_llama: Callable):
    expanded = expand(pico_llama(), num_blocks=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in expanded.trainable_parameter_groups()["expanded"]:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return expanded.eval()


def test_pieces_make_the_text_and_the_text_is_greedy(
    model, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = prompt_ids(pico_tokenizer, [{"role": "user", "content": "ab"}])
    pieces: list[str] = []
    text = Generator(model, pico_tokenizer, SETTINGS).write(ids, pieces.append)
    expected = greedy(model, ids)[ids.shape[1] :]
    assert text == pico_tokenizer.decode(expected, skip_special_tokens=True)
    assert "".join(pieces) == text


def test_cache_of_the_turn_before_is_used_and_changes_nothing(
    model, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    generator = Generator(model, pico_tokenizer, SETTINGS)
    first = prompt_ids(pico_tokenizer, [{"role": "user", "content": "abc"}])
    generator.write(first)
    whole = greedy(model, first)
    longer = torch.tensor([[*whole, 70, 71, 72]])
    text = generator.write(longer)
    assert generator.cached_tokens == len(whole) - 1
    fresh = Generator(model, pico_tokenizer, SETTINGS)
    assert fresh.write(longer) == text
    assert fresh.cached_tokens == 0


def test_cache_is_not_used_for_another_text_or_after_forgetting(
    model, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    generator = Generator(model, pico_tokenizer, SETTINGS)
    generator.write(torch.tensor([[1, 50, 51]]))
    generator.write(torch.tensor([[1, 60, 61, *range(70, 90)]]))
    assert generator.cached_tokens == 0
    generator.forget()
    generator.write(torch.tensor([[1, 60, 61, *range(70, 99)]]))
    assert generator.cached_tokens == 0


def test_interrupted_generation_leaves_no_cache(
    model, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    generator = Generator(model, pico_tokenizer, SETTINGS)
    ids = torch.tensor([[1, 50, 51]])
    expected = Generator(model, pico_tokenizer, SETTINGS).write(ids)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.write(ids, interrupt)
    assert generator.write(ids) == expected


def test_characters_are_given_whole(pico_tokenizer) -> None:
    """The byte tokenizer writes ü in two tokens."""
    decoder = TextDecoder(pico_tokenizer, [1, 100])
    ids = pico_tokenizer("für", add_special_tokens=False).input_ids
    assert [*map(decoder.add, ids), decoder.end()] == ["f", "", "ü", "r", ""]


@pytest.fixture
def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """Words carry the space before them, and a text loses its first; spaces before marks go."""
    words = ("<s>", "▁a", "▁b", "▁,", ",", "▁", "c")
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "c")
    made = tokenizers.Tokenizer(model)
    made.decoder = tokenizers.decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", clean_up_tokenization_spaces=True
    )


@pytest.mark.parametrize("prompt", [[0], [0, 1, 2], [1] * 20])
def test_streamed_text_is_the_decoded_whole_with_its_spaces(spaced_tokenizer, prompt) -> None:
    generator = random.Random(0)
    for _ in range(200):
        ids = generator.choices(range(7), k=12)
        decoder = TextDecoder(spaced_tokenizer, prompt)
        pieces = [*map(decoder.add, ids), decoder.end()]
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        before, whole = (spaced_tokenizer.decode(x, **plain) for x in (prompt, [*prompt, *ids]))
        assert "".join(pieces) == whole[len(before) :]


def test_sampling_repeats_by_seed(model, pico_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = torch.tensor([[1, 50, 51]])

    def sample(seed: int | None) -> str:
        settings = GenerationSettings(max_new_tokens=8, temperature=1.5, top_k=50, seed=seed)
        return Generator(model, pico_tokenizer, settings).write(ids)

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(5)}) > 1


def test_chat_template_is_used_where_there_is_one(pico_tokenizer) -> None:
    import copy

    tokenizer = copy.deepcopy(pico_tokenizer)
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.decode(prompt_ids(tokenizer, messages)[0]) == "<s>hi"
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert tokenizer.decode(prompt_ids(tokenizer, messages)[0]) == "<s>[user]hi[assistant]"


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}]
)
def test_wrong_settings_are_named(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        GenerationSettings(**wrong)
