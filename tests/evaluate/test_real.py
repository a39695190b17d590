"""The numbers on a real model and real text."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from controlllm import ExpansionConfig, expand
from controlllm.data import DataConfig, SourceConfig, eval_batches
from controlllm.evaluate import evaluate_losses, measure_retention

TEXTS = {
    "stories": "tinystories_excerpt/tinystories.txt",
    "shakespeare": "tinyshakespeare/input.txt",
}


@pytest.fixture(scope="module")
def batches(stories260k, shared_data):
    """`batches(name, packing)`: the first pieces of a real text."""
    tokenizer = AutoTokenizer.from_pretrained(stories260k)

    def make(name: str, packing: bool):
        config = DataConfig(max_length=256, packing=packing)
        source = SourceConfig(str(shared_data / "text" / TEXTS[name]), max_rows=1)
        return eval_batches(source, tokenizer, config, batch_size=4, limit=24)

    return make


@pytest.fixture(scope="module")
def model(stories260k):
    return AutoModelForCausalLM.from_pretrained(stories260k)


def test_it_knows_stories_and_not_shakespeare(model, batches):
    """Means over random windows are about 1.7 and 4.8 nats per token; pieces differ by 0.5."""
    stories = evaluate_losses(model, batches("stories", packing=False))
    shakespeare = evaluate_losses(model, batches("shakespeare", packing=False))
    assert stories.loss == pytest.approx(1.8, abs=0.5)
    assert shakespeare.loss == pytest.approx(4.7, abs=0.6)
    assert stories.tokens > 5000


def test_packed_and_padded_give_the_same_numbers(model, batches):
    padded = evaluate_losses(model, batches("stories", packing=False))
    packed = evaluate_losses(model, batches("stories", packing=True))
    assert packed.tokens == padded.tokens
    assert packed.loss == pytest.approx(padded.loss, abs=1e-5)


def test_an_untrained_expansion_of_it_forgot_exactly_nothing(stories260k, batches):
    base = AutoModelForCausalLM.from_pretrained(stories260k)
    expanded = expand(base, ExpansionConfig(expand_ends=True))
    report = measure_retention(expanded, batches("stories", packing=True))
    assert (report.forgetting, report.kl) == (0.0, 0.0)
