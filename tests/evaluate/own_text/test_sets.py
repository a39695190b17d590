import json
from contextlib import nullcontext

import pytest
import torch

from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.data import DataConfig, eval_batches
from controlllm.evaluate.own_text import cache
from controlllm.evaluate.own_text.sets import write_own_text
from controlllm.evaluate.own_text.settings import OwnTextConfig
from controlllm.evaluate.own_text.writing import Writer
from controlllm.expansion import ExpansionConfig, expand

DATA = DataConfig(max_length=32)


def rows(examples):
    return [example.input_ids.tolist() for example in examples]


@pytest.fixture
def write(pico_llama, pico_tokenizer, tmp_path):
    """Own text of the pico model; keyword arguments are settings."""

    def call(model=None, tokenizer=pico_tokenizer, data=DATA, block=0, key=None, **settings):
        model = pico_llama() if model is None else model
        writer = (
            Writer.base(model) if key is None else Writer(model, key, lambda model: nullcontext())
        )
        given = OwnTextConfig(**{"num_sequences": 8, "batch_size": 5, **settings})
        return write_own_text(writer, tokenizer, given, data, tmp_path / "own", block)

    return call


def test_only_what_the_model_wrote_is_a_target(write, tmp_path, pico_tokenizer):
    for example in write()["own_text"]:
        assert example.input_ids[0] == 1 and example.labels[0] == -100
        assert example.labels[1:].tolist() == example.input_ids[1:].tolist()
        assert len(example) <= 32
    (tmp_path / "prompts.txt").write_text("the cat\n\nand the dog\n")
    prompts = [pico_tokenizer(text).input_ids for text in ("the cat", "and the dog")]
    written = write(prompts=str(tmp_path / "prompts.txt"))["own_text"]
    for number, example in enumerate(written):
        prompt = prompts[number % 2]
        assert example.input_ids[: len(prompt)].tolist() == prompt
        assert (example.labels[: len(prompt)] == -100).all()
        assert (example.labels[len(prompt) :] != -100).all() and len(example) > len(prompt)


def test_words_of_the_template_are_never_targets(write, chatty):
    _, tokenizer = chatty
    data = DataConfig(max_length=80)
    chats = write(*chatty, data)["own_text_chat"]
    before = tokenizer("<|im_start|>user\n", add_special_tokens=False).input_ids
    between = tokenizer("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False).input_ids
    assert len(chats) == 8
    for example in chats:
        ids, targets = example.input_ids.tolist(), (example.labels != -100).tolist()
        assert ids[: len(before)] == before and not any(targets[: len(before)])
        # The second run of context is the template's: whole, or without the mark the model wrote.
        start = targets.index(True)
        stop = start + targets[start:].index(False)
        again = stop + targets[stop:].index(True)
        told = between[1:] if ids[stop - 1] == between[0] else between
        assert start == len(before) and ids[stop:again] == told and all(targets[again:])
        assert [i for i, t in zip(example.labels.tolist(), targets, strict=True) if t] == [
            i for i, t in zip(ids, targets, strict=True) if t
        ]


def test_a_turn_ends_where_the_model_ends_it(write, chatty):
    model, tokenizer = chatty
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        model.lm_head.weight[end] *= 40  # It ends half of all sentences at once.
    chats = write(model, tokenizer, DataConfig(max_length=80), num_sequences=16)["own_text_chat"]
    ended = [example.input_ids.tolist() for example in chats]
    assert any(row.count(end) == 2 for row in ended)
    assert all(row.count(end) <= 2 and len(row) <= 80 for row in ended)


def test_a_set_behind_the_template_only_where_there_is_one(write, chatty, pico_tokenizer, caplog):
    assert list(write()) == ["own_text"]
    assert list(write(data=DataConfig(max_length=64), chat=True)) == ["own_text", "own_text_chat"]
    assert list(write(*chatty, DataConfig(max_length=80), chat=False)) == ["own_text"]
    # No room for a conversation: told where nobody asked for it, an error where somebody did.
    assert list(write(*chatty)) == ["own_text"]
    assert "no room for a conversation" in caplog.text
    with pytest.raises(ConfigError, match="no room for a conversation"):
        write(*chatty, chat=True)
    chatty[1].chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(ConfigError, match="never"):
        write(*chatty, chat=True)
    chatty[1].chat_template = "{{ 'x' }}{{ messages[0].content | upper }}"
    with pytest.raises(ConfigError, match="does not show a user's turn"):
        write(*chatty, chat=True)


def test_the_same_block_is_the_same_text_and_another_is_another(write, monkeypatch, tmp_path):
    first, second = rows(write()["own_text"]), rows(write(block=1)["own_text"])
    assert first != second and not set(map(tuple, first)) & set(map(tuple, second))
    assert rows(write(seed=1)["own_text"]) != first
    assert len(list((tmp_path / "own").iterdir())) == 3
    monkeypatch.setattr(cache, "sample_sequences", lambda *a: pytest.fail("written again"))
    assert rows(write()["own_text"]) == first
    with pytest.raises(pytest.fail.Exception):
        write(length=16)


def test_the_base_or_the_model_at_its_dial_writes(write, pico_llama, pico_tokenizer, tmp_path):
    plain = rows(write()["own_text"])
    model = expand(pico_llama(), ExpansionConfig(num_blocks=2))
    for block in model.blocks.values():
        for parameter in block.expanded.parameters():
            parameter.data += 0.3
    assert rows(write(model)["own_text"]) == plain
    trained = Writer.trained(model, pico_tokenizer)
    assert trained.key != Writer.base(model).key
    written = rows(write(model, key=trained.key)["own_text"])
    assert written != plain
    model.set_alpha(0)
    assert Writer.trained(model, pico_tokenizer).key != trained.key
    assert rows(write(model, key="at dial 0")["own_text"]) == plain


def test_writing_leaves_the_model_and_the_random_state_alone(write, pico_llama):
    model = pico_llama().train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    write(model)
    assert torch.equal(torch.rand(2), expected) and model.training


def test_without_a_token_to_start_from(write, pico_tokenizer, caplog):
    bare = type(pico_tokenizer)(tokenizer_object=pico_tokenizer.backend_tokenizer)
    assert write(tokenizer=bare) == {}
    assert "neither a BOS nor an EOS" in caplog.text
    with pytest.raises(ConfigError, match=r"neither a BOS nor an EOS.*own_text\.prompts"):
        write(tokenizer=bare, measure=True)


def test_what_cannot_be_is_said(write, tmp_path):
    with pytest.raises(ConfigError, match=r"own_text.length=64 is more than data.max_length"):
        write(length=64)
    with pytest.raises(ConfigError, match=r"is more than the model's context \(128\)"):
        write(data=DataConfig(max_length=256), length=200)
    (tmp_path / "prompts.txt").write_text("x" * 60)
    with pytest.raises(ConfigError, match="leaves no room"):
        write(prompts=str(tmp_path / "prompts.txt"))
    (tmp_path / "prompts.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        write(prompts=str(tmp_path / "prompts.txt"))


@pytest.mark.parametrize(
    "content",
    [
        {"sequences": [[1, 900]], "written": [[[1, 2]]]},
        {"sequences": [[1, -4]], "written": [[[1, 2]]]},
        {"sequences": [[1, 4], []], "written": [[[1, 2]], []]},
        {"sequences": [[1, 4]], "written": []},
        {"sequences": [["a"]], "written": [[[1, 2]]]},
        {"sequences": [], "written": []},
        {"sequences": [[1, 4]] * 7},
        {"sequences": [[1] * 33] * 8},
        {"sequences": [[4, 1]] * 8},
        {"sequences": [[]] * 8},
        [],
    ],
)
def test_a_strangers_cache_is_data(write, tmp_path, content):
    write()
    file = next((tmp_path / "own").iterdir())
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=file.name):
        write()


def test_a_strangers_chat_whose_spans_are_none_is_refused(write, chatty, tmp_path):
    data = DataConfig(max_length=80)
    write(*chatty, data)
    (file,) = (f for f in (tmp_path / "own").iterdir() if "written" in json.loads(f.read_text()))
    good = json.loads(file.read_text())
    (start, middle), (later, end) = good["written"][0]
    for spans in (
        *([[one]] for one in ([1, 2, 3], [5], [9, 2], [-1, 2], [0, 900])),
        [[start, middle]],  # no answer
        [[0, middle], [later, end]],  # the template is none of its words
        [[start, start], [later, end]],
        [[start, middle], [middle - 1, end]],
        [[start, middle], [later, end - 1]],
    ):
        file.write_text(json.dumps(good | {"written": [spans, *good["written"][1:]]}))
        with pytest.raises(CheckpointError, match=file.name):
            write(*chatty, data)


def test_examples_become_batches_like_any_others(write, pico_tokenizer):
    examples = write()["own_text"]
    for packing in (False, True):
        data = DataConfig(max_length=32, packing=packing)
        batches = eval_batches(examples, pico_tokenizer, data, 4)
        targets = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        assert targets == sum(len(example) - 1 for example in examples)
