"""Texts of a batch are those of each row alone, and nothing is left changed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from controlllm import ExpansionConfig, expand
from controlllm.common.losses import IGNORE_INDEX
from controlllm.data import DataConfig, Example, SourceConfig, read_questions
from controlllm.evaluate.texts import Sample, as_markdown, score_targets, write_texts

PROMPTS = [[1, 5, 6, 7, 8, 9, 10], [1, 40], [1, 99, 98, 97], [1, 5, 6, 7, 8, 9, 11]]


def trained(pico_llama, structure):
    """A model whose branches differ, expanded unless it is to be plain."""
    if structure == "plain":
        return pico_llama(seed=3)
    model = expand(pico_llama(seed=3), ExpansionConfig(num_blocks=2, structure=structure))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("structure", ["plain", "concat", "stack"])
def test_texts_do_not_depend_on_the_batch(pico_llama, pico_tokenizer, structure):
    model = trained(pico_llama, structure)
    together = write_texts(model, pico_tokenizer, PROMPTS, 12, {2})
    alone = [write_texts(model, pico_tokenizer, [prompt], 12, {2})[0] for prompt in PROMPTS]
    pairs = write_texts(model, pico_tokenizer, PROMPTS[::-1][:2], 12, {2})
    assert together == alone and pairs == [alone[3], alone[2]]
    assert len({one.text for one in together}) > 1


def test_real_rows_by_a_real_model(stories260k, shared_data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(stories260k)
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    source = SourceConfig(path=str(shared_data / "sft/gsm8k/test.jsonl"), format="gsm8k")
    found = read_questions(source, tokenizer, DataConfig(learn=[source]), 6, 512, 24)
    prompts = [question.prompt_ids for question in found.questions]
    written = write_texts(model, tokenizer, prompts, 24, found.end_ids())
    for prompt, one in zip(prompts, written, strict=True):
        ids = torch.tensor([prompt])
        for _ in range(24):  # Without a cache, a batch, or `generate`.
            with torch.no_grad():
                token = model(ids).logits[0, -1].argmax()
            ids = torch.cat([ids, token[None, None]], 1)
        assert one.text == tokenizer.decode(ids[0, len(prompt) :]).strip()
        assert one.is_cut and one.tokens == 24


def test_a_text_ends_at_its_end(pico_llama, pico_tokenizer):
    model = pico_llama(seed=3)
    free = model.generate(
        torch.tensor([PROMPTS[0]]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )[0, len(PROMPTS[0]) :].tolist()
    end = free[4]
    first = free.index(end)
    one, other = write_texts(model, pico_tokenizer, PROMPTS[:2], 12, {2, end})
    assert (one.tokens, one.is_cut) == (first + 1, False)
    assert one.text == pico_tokenizer.decode(free[:first]).strip()
    assert other == write_texts(model, pico_tokenizer, PROMPTS[1:2], 12, {2, end})[0]


def test_modes_random_state_and_own_settings_are_left_alone(pico_llama, pico_tokenizer, capfd):
    model = pico_llama(seed=3, attention_dropout=0.5).train()
    model.model.layers[1].eval()
    # What a chat model's folder may prefer; greedy is greedy.
    preferred = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "max_length": 9}
    model.generation_config.update(**preferred, suppress_tokens=[*range(30, 200)])
    own = model.generation_config
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    first, second = (write_texts(model, pico_tokenizer, PROMPTS, 8, {2}) for _ in range(2))
    assert first == second == write_texts(pico_llama(seed=3), pico_tokenizer, PROMPTS, 8, {2})
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config is own
    assert capfd.readouterr() == ("", "")  # Nothing is said of flags that nobody set.


def test_each_token_is_told(pico_llama, pico_tokenizer):
    told = []
    write_texts(pico_llama(), pico_tokenizer, PROMPTS, 5, {2}, on_token=lambda: told.append(1))
    assert len(told) == 5


def example(ids, targets):
    labels = torch.full((len(ids),), IGNORE_INDEX)
    labels[targets] = torch.tensor(ids)[targets]
    return Example(torch.tensor(ids).numpy(), labels.numpy())


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_targets_are_scored_row_by_row(pico_llama, batch_size):
    model = pico_llama(seed=3).train()
    rows = [example([1, 5, 6, 7], [2, 3]), example([1, 40], [1]), example([1, 9, 9, 9, 9, 9], [4])]
    found = score_targets(model, rows, batch_size, pad_id=0)
    assert model.training
    model.eval()
    for row, score in zip(rows, found, strict=True):
        with torch.no_grad():
            log_p = model(torch.tensor(row.input_ids)[None]).logits[0].log_softmax(-1)
        places = [i for i, label in enumerate(row.labels) if label != IGNORE_INDEX]
        expected = sum(log_p[i - 1, row.input_ids[i]].item() for i in places)
        assert score.log_probability == pytest.approx(expected, abs=1e-4)
        assert score.targets == len(places)
        assert score.hits == sum(int(log_p[i - 1].argmax() == row.input_ids[i]) for i in places)
    assert math.isfinite(found[0].log_probability)


@given(st.text(max_size=60))
def test_no_text_gets_out_of_its_block(text: str) -> None:
    lines = as_markdown("run", [Sample(3, text, "right", None, text)]).split("\n")
    fences = [line for line in lines if line.startswith("```") and line.endswith("text")]
    inside, end = False, ""
    outside = []
    for line in lines:
        if inside:
            inside = line != end
        elif line.startswith("```"):
            inside, end = True, line.removesuffix("text")
        else:
            outside.append(line)
    assert not inside and len(fences) >= 3
    headings = ["# run", "## Row 3", "**Prompt**", "**Reference**", "**Tuned**"]
    assert [line for line in outside if line] == headings


def test_a_title_is_escaped_and_long_texts_are_cut():
    page = as_markdown("a <b>*x*\n# y", [Sample(0, "p" * 3000, "r", "", "t\x1b[31m")])
    assert page.startswith("# a &lt;b&gt;\\*x\\* \\# y\n")
    assert "(... 1,000 more characters)" in page and "\x1b" not in page and "**Base**" in page
