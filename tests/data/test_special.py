"""Names of special tokens inside texts are text, for every kind of tokenizer and template."""

import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.test_tokens import KNOWN
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from controlllm.common.errors import DataError
from controlllm.data import DataConfig
from controlllm.data.examples.render import Renderer
from controlllm.data.examples.special import SpecialNames
from controlllm.data.examples.tokens import Tokenized

SPECIAL = ["<s>", "</s>", "[INST]"]


def _other(model: Any) -> Tokenizer:
    """A tokenizer whose vocabulary would let texts reach special tokens as whole words."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


WORDS = [*SPECIAL, "<unk>", "the", "cat", *"<>/sINT[]thecat1234 "]
VOCABULARY = {word: id for id, word in enumerate(dict.fromkeys(WORDS))}
TOKENIZERS = {
    **KNOWN,
    "unigram": _other(models.Unigram([(w, 0.0 if w in SPECIAL else -5.0) for w in VOCABULARY], 3)),
    "words": _other(models.WordLevel(VOCABULARY, unk_token="<unk>")),
    "whole words": _other(models.BPE(VOCABULARY, [], unk_token="<unk>", ignore_merges=True)),
}
NAMES = pytest.mark.parametrize("name", TOKENIZERS)
CHAT = "{% for m in messages %}{{ '<s>' + m.role + ' ' + m.content + '</s>' }}{% endfor %}"


def wrapped(name: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS[name], eos_token="</s>", bos_token="<s>"
    )


def special_ids(tokenizer: Any, tokens: Tokenized) -> list[int]:
    ids = set(SpecialNames.of(tokenizer).ids.values())
    return [token for token in tokens.input_ids.tolist() if token in ids]


def encode(renderer: Renderer, document: Any) -> Tokenized:
    return renderer.tokenize([renderer.prepare(document)])[0]


PARTS = st.lists(st.sampled_from([*SPECIAL, " ", "the", "cat", "12", "<", "s>", "/s>", "\n"]))


@NAMES
@given(parts=PARTS)
@settings(max_examples=40)
def test_texts_hold_no_special_token_but_the_tokenizers_own(name: str, parts: list[str]) -> None:
    tokenizer, text = wrapped(name), "".join(parts)
    tokens = encode(Renderer(tokenizer, DataConfig()), text)
    own = tokenizer("").input_ids
    assert special_ids(tokenizer, tokens) == [*own, tokenizer.eos_token_id]
    if not any(special in text for special in SPECIAL):
        ids = tokenizer(text).input_ids
        assert tokens.input_ids.tolist() == [*ids, tokenizer.eos_token_id]
        # The second tokenizer would give the same.
        assert SpecialNames.of(tokenizer).backend.encode(text).ids == ids


@NAMES
@given(parts=PARTS)
@settings(max_examples=40)
def test_turns_begin_and_end_by_the_template_only(name: str, parts: list[str]) -> None:
    tokenizer, content = wrapped(name), f"the{''.join(parts)}cat"
    tokenizer.chat_template = CHAT
    talk = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    renderer = Renderer(tokenizer, DataConfig(special_tokens_in_text=False))
    tokens = encode(renderer, talk)
    s, end = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    assert special_ids(tokenizer, tokens) == [s, end, s, end]
    plain = [{**turn, "content": "the cat"} for turn in talk]
    expected = tokenizer.apply_chat_template(plain, return_dict=False)
    assert encode(renderer, plain).input_ids.tolist() == expected
    # The targets are the last turn, whatever it holds.
    targets = [t for t in tokens.labels.tolist() if t != -100]
    assert targets[-1] == end
    assert special_ids(tokenizer, Tokenized(tokens.labels, tokens.labels, 0, False)) == [s, end]


def test_every_part_of_a_message_is_text() -> None:
    """Tool calls, too; and a template that writes tokens out of parts still writes them."""
    tokenizer = wrapped("byte level")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' ~ 's>' ~ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{{ '</s>' }}{% endfor %}"
    )
    talk = [{"role": "assistant", "content": "hi", "tool_calls": [{"name": "</s>[INST]"}]}]
    tokens = encode(Renderer(tokenizer, DataConfig()), talk)
    assert special_ids(tokenizer, tokens) == [0, 1]
    assert tokenizer.decode(tokens.input_ids) == '<s>hi{"name": "</s>[INST]"}</s>'


def test_rows_that_a_template_rendered_beforehand_can_keep_their_tokens() -> None:
    tokenizer = wrapped("byte level")
    text = "<s>[INST] hi [/INST]</s>"
    tokens = encode(Renderer(tokenizer, DataConfig(special_tokens_in_text=True)), text)
    assert tokens.input_ids.tolist() == tokenizer(text).input_ids
    assert special_ids(tokenizer, tokens) == [0, 2, 1]


def test_a_normalizer_does_not_bring_them_back() -> None:
    backend = _other(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>")
    tokens = encode(Renderer(tokenizer, DataConfig()), "the </s> cat")
    assert special_ids(tokenizer, tokens) == [0, 1]


def test_a_template_that_cuts_a_name_refuses_the_row() -> None:
    tokenizer = wrapped("byte level")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content[:6] }}{% endfor %}"
    renderer = Renderer(tokenizer, DataConfig())
    assert encode(renderer, [{"role": "user", "content": "a long one"}]).input_ids.tolist()
    with pytest.raises(DataError, match="cuts a content that names a special token"):
        renderer.prepare([{"role": "user", "content": "a </s> too"}])


def test_other_threads_go_on_while_a_long_text_is_encoded() -> None:
    """A server's event loop stood still for seconds while a client's long text was encoded."""
    names = SpecialNames.of(wrapped("whole words"))
    assert names.encode("the cat", add_special_tokens=False)
    done, turns = threading.Event(), 0

    def encode() -> None:
        names.encode("</s> the cat " * 40_000, add_special_tokens=False)
        done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    while not done.is_set():
        turns += 1
        time.sleep(0.001)
    thread.join()
    assert turns > 20
