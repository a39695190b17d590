import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from controlllm.common.losses import IGNORE_INDEX
from controlllm.data import DataConfig, eval_batches
from controlllm.evaluate import (
    Certificate,
    OwnTextConfig,
    Reference,
    Writer,
    certify,
    measure_retention,
    write_own_text,
)
from controlllm.evaluate.own_text.certificate import student_quantile
from controlllm.expansion import ExpansionConfig, expand

DATA = DataConfig(max_length=32, packing=False)
SETTINGS = OwnTextConfig(num_sequences=8, measure=True)


@pytest.fixture
def moved(pico_llama):
    """`moved(by)`: an expanded model, its copies that far from the base."""

    def make(by=0.02):
        model = expand(pico_llama(), ExpansionConfig(num_blocks=2))
        with torch.no_grad():
            for block in model.blocks.values():
                for parameter in block.expanded.parameters():
                    parameter += by
        return model

    return make


def test_the_numbers_worked_out_by_hand(moved, pico_tokenizer, tmp_path):
    model = moved()
    found = certify(model, pico_tokenizer, tmp_path, SETTINGS, DATA)["own_text"]
    examples = write_own_text(Writer.base(model), pico_tokenizer, SETTINGS, DATA, tmp_path)
    sums, counts = [], []
    for example in examples["own_text"]:
        ids = torch.tensor(example.input_ids.tolist()).unsqueeze(0)
        with torch.no_grad():
            after = model(input_ids=ids).logits[0].double().log_softmax(-1)
            with model.disable_expansion():
                before = model(input_ids=ids).logits[0].double().log_softmax(-1)
        at = [place - 1 for place, one in enumerate(example.labels) if one != IGNORE_INDEX]
        sums.append(float((before.exp() * (before - after)).sum(-1)[at].sum()))
        counts.append(len(at))
    k, n = np.array(sums), np.array(counts)
    ratio = k.sum() / n.sum()
    error = math.sqrt(8 / 7 * ((k - ratio * n) ** 2).sum()) / n.sum()
    assert found.kl == pytest.approx(ratio, rel=1e-4)
    assert found.error == pytest.approx(error, rel=1e-3)
    assert (found.sequences, found.tokens) == (8, n.sum())
    upper = ratio * math.exp(student.ppf(0.99, 7) * error / ratio)
    assert found.upper == pytest.approx(upper, rel=1e-3)
    assert found.total_variation == min(1, math.sqrt(found.upper / 2))
    assert found.precision == found.upper - found.kl


def test_the_same_numbers_however_batches_are_cut(moved, pico_tokenizer, tmp_path):
    model = moved()
    cuts = [
        (DATA, 1),
        (DATA, 3),
        (DATA, 8),
        (DataConfig(max_length=32, packing=True), 2),
        (DataConfig(max_length=100, packing=True), 1),
    ]
    examples = write_own_text(Writer.base(model), pico_tokenizer, SETTINGS, DATA, tmp_path)
    seen = []
    for data, rows in cuts:
        batches = eval_batches(examples["own_text"], pico_tokenizer, data, rows)
        model.set_attn_implementation("eager")
        seen.append(Certificate.of(measure_retention(model, batches)))
    for one in seen:
        assert (one.sequences, one.tokens) == (seen[0].sequences, seen[0].tokens)
        assert one.kl == pytest.approx(seen[0].kl, rel=1e-4)
        assert one.error == pytest.approx(seen[0].error, rel=1e-3)


def test_the_base_itself_has_moved_nowhere(moved, pico_tokenizer, tmp_path):
    model = moved()
    model.set_alpha(0)
    found = certify(model, pico_tokenizer, tmp_path, SETTINGS, DATA)["own_text"]
    assert found.kl == 0 and found.upper == 0 and found.total_variation == 0
    assert str(found).startswith("KL <= 0.000 nats per token (95 %, 8 sequences, ")


def test_measured_gates_stay_what_they_are(pico_llama, pico_tokenizer, tmp_path):
    model = expand(pico_llama(), ExpansionConfig(num_blocks=2, interpolator="dlerp"))
    model.config.expansion["mean_alpha"] = {1: 0.3, 3: 0.4}  # as on the sets that were learned
    certify(model, pico_tokenizer, tmp_path, SETTINGS, DATA)
    assert model.expansion.mean_alpha == {1: 0.3, 3: 0.4}


def test_kl_is_the_rise_of_the_loss_with_less_noise(moved, pico_tokenizer, tmp_path):
    """Over many blocks both have one mean, and the rise of the loss spreads more."""
    model = moved()
    kl, rise = [], []
    for block in range(10):
        own = write_own_text(Writer.base(model), pico_tokenizer, SETTINGS, DATA, tmp_path, block)
        batches = eval_batches(own["own_text"], pico_tokenizer, DATA, 8)
        report = measure_retention(model, batches)
        kl.append(report.kl)
        rise.append(report.forgetting)
    assert np.std(kl) < np.std(rise)
    apart = np.array(rise) - np.array(kl)
    assert abs(apart.mean()) < 3 * apart.std(ddof=1) / math.sqrt(len(apart))


def test_a_wished_precision_adds_sequences_up_to_a_maximum(moved, pico_tokenizer, tmp_path):
    model = moved()
    first = certify(model, pico_tokenizer, tmp_path, SETTINGS, DATA)["own_text"]
    wished = OwnTextConfig(num_sequences=8, precision=first.precision / 1.8)
    more = certify(model, pico_tokenizer, tmp_path, wished, DATA)["own_text"]
    assert more.sequences > 8 and more.sequences % 8 == 0 and more.precision <= wished.precision
    most = OwnTextConfig(num_sequences=8, precision=1e-9, max_sequences=20)
    assert certify(model, pico_tokenizer, tmp_path, most, DATA)["own_text"].sequences == 16
    # Sequences that chose nothing.
    other = certify(model, pico_tokenizer, tmp_path, SETTINGS, DATA, first_block=1)["own_text"]
    assert other.kl != first.kl and other.sequences == 8


@pytest.mark.parametrize("precision", [0.01, None])
def test_no_more_is_written_for_a_model_that_diverged(moved, pico_tokenizer, tmp_path, precision):
    wished = OwnTextConfig(num_sequences=8, precision=precision)
    found = certify(moved(math.nan), pico_tokenizer, tmp_path, wished, DATA)["own_text"]
    assert math.isnan(found.kl) and found.upper == math.inf and found.sequences == 8


def test_a_tuned_model_beside_its_base(pico_llama, pico_tokenizer, tmp_path):
    base = pico_llama()
    tuned = deepcopy(base)
    with torch.no_grad():
        tuned.lm_head.weight += 0.05 * torch.randn_like(tuned.lm_head.weight)
    reference = Reference(tuned, copy=base)
    found = certify(tuned, pico_tokenizer, tmp_path, SETTINGS, DATA, reference)["own_text"]
    assert 0 < found.kl < found.upper


def rates(case, rng, size):
    """Simulated KL per token of sequences, mean 1: how much a sequence moves."""
    kind, spread = case
    if kind == "gamma":
        return rng.gamma(1 / spread**2, spread**2, size)
    return np.exp(spread * rng.standard_normal(size) - spread**2 / 2)


@pytest.mark.parametrize("number", [32, 64, 256])
@pytest.mark.parametrize("lengths", ["fixed", "geometric"])
@pytest.mark.parametrize("case", [("lognormal", 0.3), ("lognormal", 0.8), ("gamma", 0.8)])
def test_the_bound_covers_where_sums_are_skewed(case, lengths, number):
    rng, covered, runs = np.random.default_rng(0), 0, 1000
    for _ in range(runs):
        tokens = np.full(number, 255)
        if lengths == "geometric":
            tokens = np.minimum(rng.geometric(1 / 120, number), 255)
        sums = rates(case, rng, number) * tokens
        ratio = sums.sum() / tokens.sum()
        apart = sums - ratio * tokens
        error = math.sqrt(number / (number - 1) * (apart**2).sum()) / tokens.sum()
        covered += Certificate(ratio, error, number, int(tokens.sum())).upper >= 1
    assert covered / runs >= 0.945  # 95 % less what a thousand runs leave open


def test_students_quantile():
    for freedom in (7, 31, 511):
        assert student_quantile(0.99, freedom) == pytest.approx(
            student.ppf(0.99, freedom), rel=1e-4
        )


def test_in_words():
    assert str(Certificate(0.008, 0.0007, 512, 130560)) == (
        "KL <= 0.010 nats per token (95 %, 512 sequences, 130,560 tokens); total variation <= 0.071"
    )
    small = Certificate(1e-6, 1e-7, 64, 1000)
    assert "KL <= 0.000002 nats" in str(small)
    one = Certificate(0.3, None, 1, 30)
    assert one.upper == math.inf and one.to_dict()["upper"] is None and "KL <= inf" in str(one)
    lost = Certificate(math.nan, math.nan, 64, 1000)
    assert lost.upper == math.inf and lost.total_variation == 1
