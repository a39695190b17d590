"""Tables of names, sampling, texts with stops, caches: by hand."""

from collections import Counter

import pytest
import torch
from transformers import DynamicCache

from controlllm.common.errors import ConfigError, ModelError
from controlllm.inference.engine import (
    ModelTable,
    Sampling,
    Token,
    UnknownModelError,
    Voice,
)
from controlllm.inference.engine.caches import CacheStore, bytes_of
from controlllm.inference.engine.sampling import choose_token, make_generator
from controlllm.inference.engine.text import TextWriter

TABLE = ModelTable(["maths", "zh"], [0.3, 1])


def test_table_lists_base_sidecars_and_fixed_alphas() -> None:
    assert TABLE.names == ["base", "maths", "maths@0.3", "maths@1", "zh", "zh@0.3", "zh@1"]
    assert ModelTable().names == ["base"]


@pytest.mark.parametrize(
    ("asked", "voice"),
    [
        (("base",), ()),
        (("base", None, 0.0), ()),
        (("maths",), (("maths", None),)),
        (("maths", None, 0), ()),
        (("maths", "maths", 0.7), (("maths", 0.7),)),
        (("maths@0.3",), (("maths", 0.3),)),
        (("maths@0.3", None, 0.3), (("maths", 0.3),)),
        (("base", "zh", 0.5), (("zh", 0.5),)),
        (("base", None, {"zh": 0.5, "maths": 0.2}), (("maths", 0.2), ("zh", 0.5))),
        (("base", None, {"zh": 0.5, "maths": 0}), (("zh", 0.5),)),
    ],
)
def test_names_and_fields_mean_a_voice(asked: tuple, voice: tuple) -> None:
    assert TABLE.choose(*asked).voice == Voice(voice)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("maths@0.3", None, 0.5), "alpha"),
        (("maths", "zh"), "sidecar"),
        (("base", None, 0.5), "choose a sidecar"),
        (("base", "../maths"), "there is none called"),
        (("maths", None, {"zh": 0.5}), "one per sidecar"),
        (("base", None, {"de": 0.5}), "no sidecar 'de'"),
    ],
)
def test_contradictions_are_refused(asked: tuple, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TABLE.choose(*asked)


@pytest.mark.parametrize("name", ["/etc/passwd", "maths@0.30001", "Base", "", "runs/maths", "mats"])
def test_names_resolve_in_the_table_only(name: str) -> None:
    with pytest.raises(UnknownModelError):
        TABLE.choose(name)


def test_a_model_without_a_dial_takes_no_alpha() -> None:
    with pytest.raises(ConfigError, match="no dial"):
        ModelTable(["lora"], has_dial=False).choose("lora", None, 0.5)
    with pytest.raises(ConfigError, match="no dial"):
        ModelTable([], [0.5])
    with pytest.raises(ConfigError, match="cannot name"):
        ModelTable(["base"])


def test_greedy_takes_the_likeliest_and_tells_log_probabilities() -> None:
    logits = torch.tensor([0.25, 0.5, 0.125, 0.125, 0.0]).log()
    token = choose_token(logits, Sampling(temperature=0, top_logprobs=2), make_generator(None))
    assert token.id == 1
    assert token.logprob == pytest.approx(-0.693147)
    assert [pair[0] for pair in token.top] == [1, 0]
    assert token.top[1][1] == pytest.approx(-1.386294)
    every = choose_token(logits, Sampling(temperature=0, top_logprobs=9), make_generator(None))
    assert every.top[-1] == (4, -9999.0)  # JSON has no -inf


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    generator = make_generator(0)

    def shares(**sampling: float) -> list[float]:
        counts = Counter(
            choose_token(logits, Sampling(**sampling), generator).id for _ in range(4000)
        )
        return [counts[token] / 4000 for token in range(3)]

    assert shares() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    # Temperature 1/2 squares: 25 : 9 : 4. The likeliest alone holds 0.5, the two together 0.8.
    assert shares(temperature=0.5) == pytest.approx([25 / 38, 9 / 38, 4 / 38], abs=0.03)
    assert shares(top_p=0.6) == pytest.approx([0.625, 0.375, 0], abs=0.03)
    assert shares(top_p=0.4) == [1, 0, 0]


def test_numbers_that_are_none_are_an_error() -> None:
    with pytest.raises(ModelError, match="no probabilities"):
        choose_token(torch.tensor([0.0, float("nan")]), Sampling(), make_generator(0))


def written(tokenizer, text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], bool, int]:
    """The pieces of a text that is written byte by byte, whether it stopped, and tokens told."""
    writer = TextWriter(tokenizer, [1, 100], stops)
    pieces, told = [], 0
    for token in tokenizer(text, add_special_tokens=False).input_ids:
        piece, tokens = writer.add(Token(token))
        pieces.append(piece)
        told += len(tokens)
        if writer.stopped:
            return [p for p in pieces if p], True, told
    piece, tokens = writer.end()
    return [p for p in [*pieces, piece] if p], writer.stopped, told + len(tokens)


def test_characters_come_whole_and_stops_never_begin(pico_tokenizer) -> None:
    assert written(pico_tokenizer, "aü€b") == (["a", "ü", "€", "b"], False, 7)
    assert written(pico_tokenizer, "one END two", ("END",)) == (["o", "n", "e", " "], True, 4)
    assert written(pico_tokenizer, "an E", ("END",)) == (["a", "n", " ", "E"], False, 4)
    assert written(pico_tokenizer, "aab!", ("ab",)) == (["a"], True, 1)
    assert written(pico_tokenizer, "xyz", ("yz", "z")) == (["x"], True, 1)


def test_bytes_that_are_no_character_are_given_at_the_end(pico_tokenizer) -> None:
    writer = TextWriter(pico_tokenizer, [1], ())
    assert writer.add(Token(0xE2 + 3))[0] == ""
    assert writer.end()[0] == "\ufffd"


def cache_of(tokens: int) -> DynamicCache:
    """Two layers whose keys are the places: 2 x 2 x tokens x 4 floats."""
    cache = DynamicCache()
    keys = torch.arange(tokens, dtype=torch.float32)[None, None, :, None].expand(1, 1, tokens, 4)
    for layer in range(2):
        cache.update(keys.clone(), keys.clone(), layer)
    return cache


def test_caches_are_found_by_voice_and_tokens() -> None:
    store = CacheStore(1 << 20)
    ids = list(range(100, 140))
    maths = Voice((("maths", 0.3),))
    store.put(maths, ids, cache_of(40))
    for other in (Voice(), Voice((("maths", 0.30001),)), Voice((("maths", None),))):
        assert store.take(other, [*ids, 1]) == (None, 0)
    assert store.take(maths, ids[:10])[1] == 0  # Too little to be worth a copy.
    cache, known = store.take(maths, [*ids[:20], 7, 8])
    assert (known, cache.get_seq_length(), store.bytes) == (20, 20, bytes_of(cache_of(40)))
    cache, known = store.take(maths, [*ids, 1])
    assert (known, cache.get_seq_length()) == (40, 40)
    assert (len(store), store.bytes) == (0, 0)  # What one takes, no other finds.


def test_a_token_of_the_prompt_is_always_left_to_read() -> None:
    store = CacheStore(1 << 20)
    store.put(Voice(), range(40), cache_of(40))
    assert store.take(Voice(), list(range(40)))[1] == 39


def test_the_cache_used_longest_ago_goes_first() -> None:
    size = bytes_of(cache_of(32))
    assert size == 2 * 2 * 32 * 4 * 4
    store = CacheStore(2 * size)
    for first in (1, 2, 3):
        store.put(Voice(), [first, *range(31)], cache_of(32))
    assert (len(store), store.bytes) == (2, 2 * size)
    assert store.take(Voice(), [1, *range(31), 9])[1] == 0
    assert store.take(Voice(), [2, *range(31), 9])[1] == 32
    store.put(Voice(), range(100), cache_of(100))
    assert len(store) == 1  # What does not fit at all is not kept.
