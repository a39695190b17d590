"""Which tokens are targets, by their bytes (quick) and by the library's offsets (slow)."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from controlllm.data.examples.spans import Span
from controlllm.data.examples.tokens import Prepared, TextTokenizer, Tokenized, token_widths

SPECIAL = ["<s>", "</s>", "[INST]"]
CORPUS = [
    "the cat, the hat: 1234 times",
    "  two  spaces\n\nnew lines",
    "naïve café 二〇二六 🐈",
] * 4
SPACE = "\u2581"


def _byte_level(*before: Any, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    # Offsets without the spaces at a token's ends would be another answer.
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not before)
    last.trim_offsets = False
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _sentencepiece(prepend: bool) -> Tokenizer:
    steps: list[Any] = [normalizers.Prepend(SPACE)] if prepend else []
    tokens = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [SPACE, *"thecan", "th", "the", SPACE + "the", SPACE * 2, "na", "二"]
    vocabulary = {token: id for id, token in enumerate([*tokens, *pieces])}
    merges = [("t", "h"), ("th", "e"), (SPACE, "the"), (SPACE, SPACE), ("n", "a")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


DIGITS = pre_tokenizers.Split(Regex(r"\d{1,3}| ?\p{L}+|\s+|[^\s\p{L}\d]+"), "isolated")
KNOWN: dict[str, Tokenizer] = {
    "byte level": _byte_level(),
    "split, byte level": _byte_level(DIGITS),
    "nfc, byte level": _byte_level(normalizer=normalizers.NFC()),
    "sentencepiece, prepended": _sentencepiece(prepend=True),
    "sentencepiece": _sentencepiece(prepend=False),
}


def wrapped(backend: Tokenizer) -> TextTokenizer:
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


def as_lists(tokens: Tokenized) -> tuple[list[int], list[int], int]:
    return tokens.input_ids.tolist(), tokens.labels.tolist(), tokens.targets


PART = st.one_of(
    st.sampled_from([*SPECIAL, " ", "  ", "\n", "the cat", "1234", "二", "🐈", "e\u0301", SPACE]),
    st.text(max_size=5),
)


@st.composite
def rendered(draw: st.DrawFn) -> Prepared:
    text = "".join(draw(st.lists(PART, max_size=8)))
    places = sorted(draw(st.lists(st.integers(0, len(text)), min_size=0, max_size=4)))
    return Prepared(text, list(zip(places[::2], places[1::2], strict=False)))


@pytest.mark.parametrize("name", KNOWN)
def test_by_bytes_the_targets_are_those_of_the_offsets(name: str) -> None:
    tokenizer = wrapped(KNOWN[name])

    @settings(max_examples=300)
    @example([Prepared("二<s>0", [(4, 5)])])
    @given(st.lists(rendered(), min_size=1, max_size=5))
    def check(items: list[Prepared]) -> None:
        quick, slow = tokenizer.tokenize(items), tokenizer._by_offsets(items)
        assert [as_lists(tokens) for tokens in quick] == [as_lists(tokens) for tokens in slow]

    check()


@pytest.mark.parametrize("name", KNOWN)
def test_plain_texts_need_no_offsets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = wrapped(KNOWN[name])
    spans: list[Span] = [(4, 11)]
    items = [Prepared(f"{start}the café [INST] 二 12</s>", spans) for start in ("", "<s>", " ")]
    expected = [as_lists(tokens) for tokens in tokenizer._by_offsets(items)]
    asked: list[int] = []
    monkeypatch.setattr(tokenizer, "_by_offsets", lambda items: asked.append(len(items)) or [])
    assert [as_lists(tokens) for tokens in tokenizer.tokenize(items)] == expected
    assert asked == [0]


def test_a_text_that_is_normalised_is_left_to_the_offsets() -> None:
    widths = token_widths(KNOWN["nfc, byte level"])
    assert widths is not None
    assert widths.adds_up("café", 5)
    assert not widths.adds_up("cafe\u0301", 6)
    assert not widths.adds_up("café", 4)


def _other(name: str) -> Tokenizer:
    backend = _byte_level()
    if name == "lowercase":
        backend.normalizer = normalizers.Lowercase()
    elif name == "prefix space":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif name == "word piece":
        backend = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "##re": 2}, unk_token="[UNK]"))
    elif name == "no byte fallback":
        backend = Tokenizer(models.BPE({"<unk>": 0, SPACE: 1}, [], unk_token="<unk>"))
        backend.normalizer = normalizers.Replace(" ", SPACE)
    return backend


@pytest.mark.parametrize("name", ["lowercase", "prefix space", "word piece", "no byte fallback"])
def test_other_tokenizers_are_left_to_the_offsets(name: str) -> None:
    assert token_widths(_other(name)) is None


def test_tokens_that_are_added_later_are_known() -> None:
    tokenizer = wrapped(_byte_level())
    items = [Prepared("the <new> cat", [(4, 9)])]
    assert tokenizer.tokenize(items)[0].targets > 1
    tokenizer.tokenizer.add_tokens([AddedToken("<new>")])
    tokens = tokenizer.tokenize(items)[0]
    new = tokenizer.tokenizer.convert_tokens_to_ids("<new>")
    assert [label for label in tokens.labels.tolist() if label != -100] == [new]


@pytest.mark.parametrize("name", ["tokenizers/minimind6400", "checkpoints/stories260k-hf"])
def test_real_tokenizers_need_no_offsets(shared_data: Path, name: str) -> None:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(shared_data / name)
    assert token_widths(tokenizer.backend_tokenizer) is not None
