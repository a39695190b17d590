"""One step's loss: what enters it, and that no way of cutting rows into batches changes it."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from controlllm.common.attention.attention import packed_attention_for, register_packed_attention
from controlllm.data import REHEARSAL, REPLAY, TRAIN, Example
from controlllm.data.loader.collate import packed_batch, padded_batch
from controlllm.evaluate import Reference
from controlllm.expansion import ExpansionConfig, expand
from controlllm.train.step.losses import StepLoss, StepReport

ORIGINS = [TRAIN, REHEARSAL, TRAIN, REPLAY, REHEARSAL, TRAIN]


@pytest.fixture
def members():
    """Six rows of different lengths and origins; some tokens are no targets."""
    rng = np.random.default_rng(0)
    rows = []
    for length, origin in zip((5, 9, 12, 7, 4, 10), ORIGINS, strict=True):
        ids = rng.integers(3, 259, length).astype(np.int32)
        labels = ids.copy()
        labels[: 1 + length // 4] = -100
        rows.append((Example(ids, labels), origin))
    return rows


@pytest.fixture
def model(pico_llama):
    return make_model(pico_llama)


def make_model(pico_llama, **config):
    """An expanded model that has moved away from its base."""
    model = expand(pico_llama(), ExpansionConfig(num_blocks=2, divergence="nmse", **config))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model.train()


def run_step(model, batches, rehearsal_weight=0.7, copy=None, **in_parts):
    """Loss parts and gradients of one optimizer step over `batches`."""
    model.zero_grad()
    reference = Reference(model, copy) if rehearsal_weight is not None else None
    loss = StepLoss(model, reference, rehearsal_weight, **in_parts)
    counts, report = loss.count(batches), StepReport()
    for batch in batches:
        loss.micro_batch(batch, counts, report).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return report, gradients


def assert_same(a, b):
    for (report, gradients), (other_report, other_gradients) in [(a, b)]:
        assert report.losses.keys() == other_report.losses.keys()
        for name, value in report.losses.items():
            torch.testing.assert_close(value, other_report.losses[name], rtol=1e-5, atol=1e-6)
        for layer, value in report.divergence.items():
            torch.testing.assert_close(value, other_report.divergence[layer])
        assert gradients.keys() == other_gradients.keys()
        for name, value in gradients.items():
            torch.testing.assert_close(value, other_gradients[name], rtol=1e-4, atol=1e-6)


def padded(members):
    return padded_batch([[member] for member in members], 16, 0)


def packed(members):
    return packed_batch([members[:2], members[2:3], members[3:]], 24, 0)


@pytest.mark.parametrize("cuts", [[3], [1, 2], [1, 2, 3, 4, 5]])
def test_micro_batches_equal_one_big_batch(model, members, cuts):
    bounds = [0, *cuts, len(members)]
    pieces = [padded(members[a:b]) for a, b in itertools.pairwise(bounds)]
    assert_same(run_step(model, pieces), run_step(model, [padded(members)]))


@pytest.mark.parametrize("in_parts", [{"chunk": 1}, {"chunk": 7}, {"fused": True}])
@pytest.mark.parametrize("whole", [False, True])
def test_in_parts_the_step_is_the_same(pico_llama, members, in_parts, whole):
    """Padded, of a model that carries its base; packed, of a plain one beside its base."""
    register_packed_attention()
    model = pico_llama(seed=1) if whole else make_model(pico_llama, expand_ends=True)
    copy, cut = (pico_llama(), packed) if whole else (None, padded)
    for one in (model, copy or model):
        one.set_attn_implementation(packed_attention_for("sdpa"))
    step = partial(run_step, model, [cut(members)], copy=copy)
    assert_same(step(**in_parts), step())


def test_packed_equals_padded(model, members):
    padded_step = run_step(model, [padded(members)])
    register_packed_attention()
    model.set_attn_implementation(packed_attention_for("sdpa"))
    assert_same(run_step(model, [packed(members)]), padded_step)


def test_packed_micro_batches_equal_one_big_batch(model, members):
    register_packed_attention()
    model.set_attn_implementation(packed_attention_for("sdpa"))
    pieces = [packed_batch([members[:2]], 24, 0), packed_batch([members[2:3], members[3:]], 24, 0)]
    assert_same(run_step(model, pieces), run_step(model, [packed(members)]))


def test_padding_changes_nothing(model, members):
    wide = padded_batch([[member] for member in members], 16, 0)
    for key, fill in (("input_ids", 7), ("labels", -100), ("attention_mask", 0), ("origin", -1)):
        wide[key] = F.pad(wide[key], (0, 8), value=fill)
    assert_same(run_step(model, [wide]), run_step(model, [padded(members)]))


def test_the_parts_equal_the_formulas(model, members):
    """Each part worked out row by row, without any batch."""
    report, _ = run_step(model, [padded(members)], rehearsal_weight=0.7)
    ce, divergence, kl, targets, tokens, rehearsed = 0.0, 0.0, 0.0, 0, 0, 0
    for example, origin in members:
        ids = torch.tensor(example.input_ids).long()[None]
        keep = torch.tensor(example.labels)[1:] != -100
        with torch.no_grad(), model.explicit_divergence() as terms:
            logits = model(input_ids=ids).logits[0, :-1][keep].double()
        with torch.no_grad(), model.disable_expansion():
            base = model(input_ids=ids).logits[0, :-1][keep].double()
        blocks = [d.sum().item() for d in terms.values.values()]
        divergence += sum(blocks) / len(blocks)
        tokens += len(example)
        if origin == REHEARSAL:
            log_p, log_q = base.log_softmax(-1), logits.log_softmax(-1)
            kl += (log_p.exp() * (log_p - log_q)).sum().item()
            rehearsed += int(keep.sum())
        else:
            ce -= logits.log_softmax(-1).gather(-1, ids[0, 1:][keep][:, None]).sum().item()
            targets += int(keep.sum())
    expected = {
        "cross_entropy": ce / targets,
        "divergence": divergence / tokens,
        "rehearsal": 0.7 * kl / rehearsed,
    }
    got = {name: value.item() for name, value in report.losses.items()}
    # A float32 log-probability resolves about 1e-7, and the KL is a small difference of such.
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert report.total.item() == pytest.approx(sum(expected.values()), rel=1e-5)


def test_rehearsed_rows_stay_out_of_the_cross_entropy_under_kl_only(model, members):
    counts = StepLoss(model, Reference(model), 1.0).count([padded(members)])
    plain = StepLoss(model, Reference(model), None).count([padded(members)])
    assert plain.targets == counts.targets + counts.rehearsed
    assert plain.rehearsed == 0
    assert "rehearsal" not in run_step(model, [padded(members)], None)[0].losses


def test_kl_and_divergence_are_zero_before_the_first_step(pico_llama, members):
    fresh = expand(pico_llama(), ExpansionConfig(num_blocks=2)).train()
    report, gradients = run_step(fresh, [padded(members)])
    # The base runs the rehearsed rows alone: another shape, another rounding.
    assert abs(report.losses["rehearsal"].item()) < 1e-6
    assert report.losses["divergence"].item() == 0.0
    assert report.losses["cross_entropy"].item() > 1
    assert any(g.abs().max() > 0 for g in gradients.values())


def test_divergence_over_target_tokens_only(pico_llama, members):
    config = ExpansionConfig(num_blocks=2, divergence_tokens="target")
    model = expand(pico_llama(), config).train()
    batch = padded(members)
    counts = StepLoss(model, Reference(model), 1.0).count([batch])
    assert counts.tokens == counts.targets + counts.rehearsed
    assert counts.real == int(batch["attention_mask"].sum())


def test_a_plain_model_has_cross_entropy_alone(pico_llama, members):
    model = pico_llama()
    report, _ = run_step(model, [padded(members)], None)
    batch = padded(members)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "labels")}
    torch.testing.assert_close(report.total, model(**inputs).loss.detach())
    assert set(report.losses) == {"cross_entropy"}
