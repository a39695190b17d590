"""A held-out set as prompts and answers."""

import copy
import json

import pytest

from controlllm.common.errors import ConfigError, DataError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.data import DataConfig, SourceConfig, check_questions, read_questions
from controlllm.data.config.hooks import POSTPROCESS


@pytest.fixture
def source(tmp_path):
    """`source(rows, **fields)`: a set of such rows."""

    def make(rows, **fields):
        path = tmp_path / "set.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SourceConfig(path=str(path), name="set", **fields)

    return make


PAIRS = [{"prompt": f"What is {n} + 1?", "completion": str(n + 1)} for n in range(5)]


def test_prompts_and_answers(source, pico_tokenizer):
    found = read_questions(source(PAIRS), pico_tokenizer, DataConfig(), limit=3)
    assert [one.answer for one in found.questions] == ["1", "2", "3"]
    assert found.questions[0].prompt == "<s>### User:\nWhat is 0 + 1?\n\n### Assistant:\n"
    assert found.end_ids() == {2} and found.too_long == 0
    for question, example in zip(found.questions, found.examples(), strict=True):
        # The prompt is exactly what stands before the targets in training.
        first = example.labels.tolist().index(ord(question.answer) + 3)
        assert tuple(example.input_ids[:first]) == question.prompt_ids
        assert (example.labels[:first] == IGNORE_INDEX).all()
        assert example.labels[first + 1] == 2
    other = found.examples(["x", "y", "z"])
    begins = [len(question.prompt_ids) for question in found.questions]
    letters = [chr(one.labels[i] - 3) for one, i in zip(other, begins, strict=True)]
    assert letters == ["x", "y", "z"]


def test_targets_are_the_answers_whatever_else_is_trained_on(source, pico_tokenizer):
    config = DataConfig(train_on=["user", "assistant"])
    found = read_questions(source(PAIRS), pico_tokenizer, config, limit=1)
    (example,) = found.examples()
    targets = [label for label in example.labels.tolist() if label != IGNORE_INDEX]
    assert targets == [ord("1") + 3, 2]


def test_the_last_answer_of_a_conversation(source, pico_tokenizer):
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?")]
    turns += [("assistant", "4"), ("user", "Thanks")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (question,) = read_questions(source([row]), pico_tokenizer, DataConfig()).questions
    assert question.answer == "4" and question.prompt.endswith("2+2?\n\n### Assistant:\n")
    assert "Hello" in question.prompt and "Thanks" not in question.prompt


def test_names_of_special_tokens_are_text(source, pico_tokenizer):
    rows = [{"prompt": "a</s>b", "completion": "c"}]
    (question,) = read_questions(source(rows), pico_tokenizer, DataConfig()).questions
    assert 2 not in question.prompt_ids and "a</s>b" in question.prompt
    as_tokens = DataConfig(special_tokens_in_text=True)
    (question,) = read_questions(source(rows), pico_tokenizer, as_tokens).questions
    assert 2 in question.prompt_ids


def test_what_the_template_ends_an_answer_with_ends_a_text(source, pico_tokenizer):
    tokenizer = copy.deepcopy(pico_tokenizer)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    found = read_questions(source(PAIRS), tokenizer, DataConfig(chat_template="chatml"))
    assert found.end_ids() == {2, tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_prompts_without_room_are_left_out_and_counted(source, pico_tokenizer):
    rows = [*PAIRS, {"prompt": "x" * 90, "completion": "y"}]
    found = read_questions(source(rows), pico_tokenizer, DataConfig(), longest=100, room=10)
    assert len(found.questions) == 5 and found.too_long == 1
    with pytest.raises(ConfigError, match=r"more than 20 - 10 tokens.*max_new_tokens"):
        read_questions(source(rows), pico_tokenizer, DataConfig(), longest=20, room=10)


def test_choices_among_rows_hold(source, pico_tokenizer):
    rows = [{**row, "kind": "ab"[n % 2]} for n, row in enumerate(PAIRS)]
    found = read_questions(source(rows, where={"kind": ["b"]}), pico_tokenizer, DataConfig())
    assert [one.answer for one in found.questions] == ["2", "4"]


def test_rows_of_a_hook(source, pico_tokenizer, monkeypatch):
    from controlllm.data import register_postprocess

    monkeypatch.setattr(POSTPROCESS, "_things", {})

    @register_postprocess("shout")
    def shout(rows, context):
        for row in rows:
            yield {**row, "completion": f"{row['completion']}!"}

    hooked = source(PAIRS, postprocess="shout")
    check_questions(hooked, DataConfig())
    found = read_questions(hooked, pico_tokenizer, DataConfig())
    assert [one.answer for one in found.questions] == ["1!", "2!", "3!", "4!", "5!"]


@pytest.mark.parametrize("check", ["check", "read"])
@pytest.mark.parametrize(
    "row, kind, message",
    [
        ({"text": "a story"}, ConfigError, "'set', whose rows are plain text without prompt"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, DataError, "set.jsonl:1: nobody"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, DataError, "nothing stands"),
        ({"prompt": "a"}, DataError, "set.jsonl:1: no format fits"),
    ],
)
def test_rows_that_are_no_questions(source, pico_tokenizer, check, row, kind, message):
    bad = source([row])
    with pytest.raises(kind, match=message):
        if check == "check":
            check_questions(bad, DataConfig())
        else:
            read_questions(bad, pico_tokenizer, DataConfig())


def test_bad_rows_may_be_skipped_but_not_plain_text(source, pico_tokenizer):
    rows = [{"prompt": "a"}, *PAIRS]
    found = read_questions(source(rows, on_bad_row="skip"), pico_tokenizer, DataConfig())
    assert len(found.questions) == 5
    text = source([{"text": "a"}], on_bad_row="skip")
    with pytest.raises(ConfigError, match=r"plain text"):
        read_questions(text, pico_tokenizer, DataConfig())


def test_rows_chosen_by_a_pass_are_refused(source):
    for fields in ({"deduplicate": True}, {"sample_rows": 3}):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            check_questions(source(PAIRS, **fields), DataConfig())
