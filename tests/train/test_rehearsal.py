import json
import logging
import re

import pytest
import torch

from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.evaluate.own_text import cache, writing
from controlllm.expansion import ExpansionConfig, expand
from controlllm.train.setup.ready import set_up
from controlllm.train.setup.rehearsal import rehearsal_source
from controlllm.train.setup.ways.contract import Stage


@pytest.fixture
def run(run_config):
    return run_config(rehearsal={"num_sequences": 10, "batch_size": 4, "share": 0.25})


def sequences(source):
    return [source[i].input_ids.tolist() for i in range(len(source))]


def test_the_base_writes_what_it_knows(run, loaded):
    source = rehearsal_source(*loaded(), run)
    assert len(source) == 10
    rows = sequences(source)
    assert all(row[0] == 1 and len(row) <= 32 for row in rows)  # from BOS, at most max_length
    text = loaded()[1].decode([token for row in rows for token in row])
    assert "the " in text and " cat " in text  # the old domain, not noise
    assert source[0].labels[0] == -100
    assert source[0].labels[1:].tolist() == rows[0][1:]


def test_sequences_are_cached_by_content(run, loaded, monkeypatch, tmp_path):
    first = sequences(rehearsal_source(*loaded(), run))
    monkeypatch.setattr(cache, "sample_sequences", lambda *a: pytest.fail("sampled again"))
    assert sequences(rehearsal_source(*loaded(), run)) == first
    with pytest.raises(pytest.fail.Exception):  # another base
        model, tokenizer = loaded()
        model.lm_head.weight.data[5] += 1
        rehearsal_source(model, tokenizer, run)
    with pytest.raises(pytest.fail.Exception):  # another setting
        run.rehearsal.temperature = 0.5
        rehearsal_source(*loaded(), run)
    files = list((tmp_path / "run" / "rehearsal").iterdir())
    assert len(files) == 1 and len(json.loads(files[0].read_text())["sequences"]) == 10


@pytest.mark.parametrize("held", [[], [[1, 2]] * 9, [[1, 259]] * 10, [[]] * 10, [[1] * 33] * 10])
def test_a_cache_with_anything_else_is_refused(run, loaded, tmp_path, held):
    rehearsal_source(*loaded(), run)
    (file,) = (tmp_path / "run" / "rehearsal").iterdir()
    file.write_text(json.dumps({"sequences": held}))
    with pytest.raises(CheckpointError, match=r"json does not hold 10 sequences"):
        rehearsal_source(*loaded(), run)


def test_a_base_is_hashed_once_for_all_parts(run, loaded, monkeypatch):
    run.rehearsal.num_sequences, run.rehearsal.max_epochs, hashed = 4, 1.0, []
    whole = writing.fingerprint
    monkeypatch.setattr(writing, "fingerprint", lambda model: hashed.append(1) or whole(model))
    assert len(rehearsal_source(*loaded(), run, steps=12)) > 8  # three parts at least
    assert len(hashed) == 1


def test_an_expanded_model_lets_its_base_write(run, loaded, tmp_path):
    plain = sequences(rehearsal_source(*loaded(), run))
    model, tokenizer = loaded()
    expanded = expand(model, ExpansionConfig(num_blocks=2))
    for block in expanded.blocks.values():
        for parameter in block.expanded.parameters():
            parameter.data += 0.3
    run.rehearsal.cache_dir = str(tmp_path / "elsewhere")
    assert sequences(rehearsal_source(expanded, tokenizer, run)) == plain


def test_sampling_leaves_the_random_state_alone(run, loaded):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    rehearsal_source(*loaded(), run)
    assert torch.equal(torch.rand(2), expected)


def test_the_checkpoints_own_generation_habits_do_not_matter(run, loaded, tmp_path):
    plain = sequences(rehearsal_source(*loaded(), run))
    model, tokenizer = loaded()
    model.generation_config.update(top_k=1, top_p=0.1, repetition_penalty=5.0, do_sample=True)
    model.generation_config.update(
        min_p=0.9, no_repeat_ngram_size=1, suppress_tokens=[*range(9, 99)]
    )
    model.generation_config.update(max_new_tokens=3, min_new_tokens=2, bad_words_ids=[[7]])
    run.rehearsal.cache_dir = str(tmp_path / "elsewhere")
    assert sequences(rehearsal_source(model, tokenizer, run)) == plain


def test_prompts_of_different_lengths_begin_the_sequences(run, loaded, tmp_path):
    (tmp_path / "prompts.txt").write_text("the cat\n\nand the dog lay\n")
    run.rehearsal.prompts = str(tmp_path / "prompts.txt")
    rows = sequences(rehearsal_source(*loaded(), run))
    tokenizer = loaded()[1]
    short, long = (tokenizer(text).input_ids for text in ("the cat", "and the dog lay"))
    assert all(row[: len(short)] == short for row in rows[0::2])
    assert all(row[: len(long)] == long for row in rows[1::2])
    assert 0 not in [token for row in rows for token in row]  # no padding inside


def test_what_cannot_work_is_said(run, loaded, tmp_path):
    (tmp_path / "prompts.txt").write_text("x" * 60)
    for setting, value, message in (
        ("length", 64, "more than data.max_length"),
        ("prompts", str(tmp_path / "none.txt"), "cannot read"),
        ("prompts", str(tmp_path / "prompts.txt"), "leaves no room"),
    ):
        before = getattr(run.rehearsal, setting)
        setattr(run.rehearsal, setting, value)
        with pytest.raises(ConfigError, match=message):
            rehearsal_source(*loaded(), run)
        setattr(run.rehearsal, setting, before)
    model, tokenizer = loaded()
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ConfigError, match="neither a BOS nor an EOS"):
        rehearsal_source(model, tokenizer, run)


def test_batches_carry_rehearsed_rows(run, loaded):
    ready = set_up(run, loaded())
    counts = [ready.loss.count([next(ready.loader)]) for _ in range(20)]
    rehearsed, targets = sum(c.rehearsed for c in counts), sum(c.targets for c in counts)
    assert 0.2 < rehearsed / (rehearsed + targets) < 0.3


def test_a_long_run_lets_more_be_written(run, loaded, caplog, tmp_path):
    """10 steps of 2 micro-batches of 2 slots of 32 tokens, a quarter rehearsed: 320 tokens."""
    run.training.max_steps, run.rehearsal.num_sequences = 10, 4
    few = sequences(set_up(run, loaded()).loader.feeds[-1].chunks)
    run.rehearsal.max_epochs = 2.0
    with caplog.at_level(logging.INFO):
        some = sequences(set_up(run, loaded()).loader.feeds[-1].chunks)
    assert some[: len(few)] == few and len(some) > len(few)  # what was there is kept
    assert len({tuple(row) for row in some}) > len(few)  # and others come
    length = sum(map(len, few)) / len(few)
    assert len(some) == pytest.approx(320 / length / 2, abs=1)
    (told,) = (r.getMessage() for r in caplog.records if "times each" in r.getMessage())
    assert re.search(r"reads about \d+ sequences; \d+ more than the first 4 make", told)
    files = list((tmp_path / "run" / "rehearsal").iterdir())
    assert len(files) == -(-len(some) // 4)  # each part in its own file
    run.rehearsal.max_epochs = 1.0
    more = sequences(set_up(run, loaded()).loader.feeds[-1].chunks)
    assert more[: len(some)] == some and len(more) == pytest.approx(2 * len(some), abs=2)


@pytest.mark.parametrize("epochs", [0.4, None])
def test_a_short_run_writes_what_it_is_told_to(run, loaded, epochs):
    """Epochs of the data give 3 steps, or 6 were told; neither reads ten sequences twice."""
    run.rehearsal.max_epochs, run.training.num_train_epochs = 2.0, epochs
    assert len(set_up(run, loaded()).loader.feeds[-1].chunks) == 10


def test_passes_of_padded_rows_are_counted_by_rows(run, loaded):
    """6 steps of 4 rows, a quarter rehearsed, at most a third of the text read: 18 sequences."""
    run.data.packing, run.rehearsal.max_epochs = False, 1 / 3
    assert len(set_up(run, loaded()).loader.feeds[-1].chunks) == 18


def test_more_than_the_most_is_not_written_and_told(run, loaded, caplog):
    run.rehearsal.max_epochs, run.rehearsal.max_sequences = 0.01, 23
    assert len(set_up(run, loaded()).loader.feeds[-1].chunks) == 23
    assert "rehearsal.max_sequences=23 is below the" in caplog.text


def test_each_stage_of_a_chain_writes_its_part(run, loaded, tmp_path):
    run.rehearsal.num_sequences, run.rehearsal.max_epochs = 4, 1.0
    alone = rehearsal_source(*loaded(), run, steps=12)
    two = rehearsal_source(*loaded(), run, (Stage("base"), Stage("a", key="a")), steps=12)
    assert len(two) == pytest.approx(len(alone), abs=2)


def test_half_is_rehearsed_behind_a_chat_template(run, chatty, tmp_path):
    run.data.max_length = 64
    model, tokenizer = chatty
    source = rehearsal_source(model, tokenizer, run)
    mark = tokenizer.convert_tokens_to_ids("<|im_start|>")
    chats = [source[i].input_ids[0] == mark for i in range(len(source))]
    assert chats == [True, False] * 5
    for example in (source[0], source[8]):
        asked = tokenizer("<|im_start|>user\n", add_special_tokens=False).input_ids
        assert example.input_ids[: len(asked)].tolist() == asked
        assert (example.labels[: len(asked)] == -100).all() and (example.labels != -100).any()
        told = example.labels != -100
        assert (example.labels[told] == example.input_ids[told]).all()
    assert len(list((tmp_path / "run" / "rehearsal").iterdir())) == 2
    run.rehearsal.chat_share = 0.2
    source = rehearsal_source(model, tokenizer, run)
    assert sum(source[i].input_ids[0] == mark for i in range(10)) == 2
    run.rehearsal.chat_share = 0.0
    assert all(row[0] == 1 for row in sequences(rehearsal_source(model, tokenizer, run)))


def test_more_conversations_are_others(run, chatty):
    run.data.max_length = 64
    run.rehearsal.num_sequences, run.rehearsal.max_epochs = 4, 1.0
    rows = sequences(rehearsal_source(*chatty, run, steps=12))
    mark = chatty[1].convert_tokens_to_ids("<|im_start|>")
    chats = [tuple(row) for row in rows if row[0] == mark]
    assert len(rows) > 8 and 2 * len(chats) >= len(rows) and len(set(chats)) == len(chats)


def test_conversations_that_cannot_be_are_said(run, chatty, caplog):
    run.data.max_length = 64
    run.rehearsal.chat_share = 0.05
    with pytest.raises(ConfigError, match=r"chat_share=0.05 of rehearsal.num_sequences=10 is no"):
        rehearsal_source(*chatty, run)
    run.rehearsal.chat_share, run.rehearsal.length = 0.5, 8
    with pytest.raises(ConfigError, match=r"rehearsal.chat_share: .* raise rehearsal.length"):
        rehearsal_source(*chatty, run)
    run.data.max_length, run.rehearsal.length = 8, None
    with pytest.raises(ConfigError, match=r"raise data.max_length, or set rehearsal.chat_share=0"):
        rehearsal_source(*chatty, run)
    run.rehearsal.chat_share = None  # Where nobody asked they are left out, and it is told.
    assert len(rehearsal_source(*chatty, run)) == 10
    assert "Nothing is written behind the chat template: rehearsal.chat_share" in caplog.text


def test_temperature_is_that_of_conversations_too(run, chatty):
    run.data.max_length = 64
    warm = sequences(rehearsal_source(*chatty, run))
    run.rehearsal.temperature = 1e-3
    cold = sequences(rehearsal_source(*chatty, run))
    assert warm[0] != cold[0]
    assert len({tuple(row) for row in cold[::2]}) == 1  # the likeliest conversation


def test_nobody_asked_for_conversations_behind_another_template_or_from_prompts(
    run, chatty, tmp_path
):
    mark = chatty[1].convert_tokens_to_ids("<|im_start|>")
    run.data.max_length = 64

    def chats():
        return sum(row[0] == mark for row in sequences(rehearsal_source(*chatty, run)))

    run.data.chat_template = chatty[1].chat_template
    assert chats() == 0
    run.rehearsal.chat_share = 0.5
    assert chats() == 5
    run.data.chat_template, run.rehearsal.chat_share = None, None
    (tmp_path / "prompts.txt").write_text("the cat\n")
    run.rehearsal.prompts = str(tmp_path / "prompts.txt")
    assert chats() == 0


def test_each_stage_writes_conversations(run, chatty, tmp_path):
    run.data.max_length = 64
    stages = (Stage("base"), Stage("a", key="a"))
    rows = sequences(rehearsal_source(*chatty, run, stages))
    mark = chatty[1].convert_tokens_to_ids("<|im_start|>")
    assert [row[0] == mark for row in rows] == [True, True, False, False] * 5


@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize("packing", [True, False])
def test_conversations_take_part_in_a_step(run, chatty, loss, packing):
    run.data.max_length, run.data.packing, run.rehearsal.loss = 64, packing, loss
    ready = set_up(run, chatty)
    batches = [next(ready.loader) for _ in range(8)]
    counts = ready.loss.count(batches)
    assert counts.rehearsed > 0 if loss == "kl" else counts.targets > 0
    for batch in batches:
        ready.loss.micro_batch(batch, counts).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ready.model.parameters())
