import math

import pytest
import torch

from controlllm.common.losses import (
    IGNORE_INDEX,
    cross_entropy_sum,
    kl_sum,
    log_probs_kl,
    masked_sum,
    next_token_kl,
    target_log_probs,
    target_mask,
    target_nll,
    token_mask,
    weighted_cross_entropy_sum,
)

THIRD, LN = math.log(1 / 3), math.log
# p(next) at each of four positions, over three tokens.
LOGITS = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1 / 3] * 3, [0.9, 0.05, 0.05]]]).log()
LABELS = torch.tensor([[-100, 0, 1, 2]])


def test_cross_entropy_predicts_the_next_token():
    total, count = cross_entropy_sum(LOGITS, LABELS)
    assert count == 3
    assert total.item() == pytest.approx(-(LN(0.5) + LN(0.8) + THIRD), rel=1e-6)


def test_ignored_labels_never_count():
    total, count = cross_entropy_sum(LOGITS, torch.tensor([[0, -100, 1, -100]]))
    assert count == 1
    assert total.item() == pytest.approx(-LN(0.8), rel=1e-6)


def test_nothing_to_predict_is_a_sum_of_zero_with_a_gradient():
    logits = LOGITS.clone().requires_grad_()
    total, count = cross_entropy_sum(logits, torch.full((1, 4), -100))
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0)
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_logits_are_summed_in_float32():
    total, _ = cross_entropy_sum(LOGITS.bfloat16(), LABELS)
    assert total.dtype == torch.float32


def test_target_mask_is_one_position_before_the_target():
    assert target_mask(LABELS).tolist() == [[True, True, True, False]]


def test_kl_by_hand_on_target_positions_only():
    other = torch.tensor([[[0.25, 0.5, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [1, 0, 0]]]).log()
    total, count = kl_sum(LOGITS, other, torch.tensor([[0, 0, 1, -100]]))
    assert count == 2
    assert total.item() == pytest.approx(0.5 * LN(2) - 0.25 * LN(2), rel=1e-6)


def test_kl_of_equal_logits_is_exactly_zero():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert kl_sum(logits, logits, torch.ones(2, 5, dtype=torch.long))[0].item() == 0.0


def test_kl_to_a_model_with_added_tokens():
    """The base gives the new token probability 0; the model gave it half of everything."""
    labels = torch.tensor([[0, 0]])
    reference = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]).log()
    grown = torch.tensor([[[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]]]).log()
    assert kl_sum(reference, grown, labels)[0].item() == pytest.approx(LN(2), rel=1e-6)


def test_kl_where_the_reference_says_never():
    reference = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]).log()
    model = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]).log()
    total, _ = kl_sum(reference, model, torch.tensor([[0, 0]]))
    assert total.item() == pytest.approx(LN(2), rel=1e-6)


def test_kl_per_token_by_hand():
    other = torch.tensor([[[0.25, 0.5, 0.25], [0.1, 0.8, 0.1], [1 / 3] * 3, [0.9, 0.05, 0.05]]])
    grown = torch.cat([other.log(), torch.full((1, 4, 1), -math.inf)], -1)  # an added token
    for logits in (other.log(), grown):
        kl = next_token_kl(LOGITS, logits)[0].tolist()
        assert kl == pytest.approx([0.5 * LN(2) - 0.25 * LN(2), 0, 0, 0], abs=1e-6)


def test_log_probabilities_at_targets_give_the_same_loss_and_kl():
    generator = torch.Generator().manual_seed(0)
    base, model = (torch.randn(3, 5, 7, generator=generator) for _ in range(2))
    labels = torch.randint(0, 7, (3, 5), generator=generator)
    labels[0, :3] = labels[2] = IGNORE_INDEX
    (base_NV, targets), (model_NV, _) = (target_log_probs(x, labels) for x in (base, model))
    loss, count = cross_entropy_sum(model, labels)
    assert targets.tolist() == [*labels[0, 3:].tolist(), *labels[1, 1:].tolist()]
    assert len(targets) == count
    torch.testing.assert_close(target_nll(model_NV, targets).sum(), loss)
    kl = log_probs_kl(base_NV, model_NV).sum()
    torch.testing.assert_close(kl, kl_sum(base, model, labels)[0])
    nothing, targets = target_log_probs(model, torch.full_like(labels, IGNORE_INDEX))
    assert nothing.shape == (0, 7) and target_nll(nothing, targets).shape == (0,)


def test_token_mask_takes_real_tokens_or_targets():
    batch = {"input_ids": torch.ones(1, 4), "labels": LABELS}
    assert token_mask(batch).all()
    padding = torch.tensor([[1, 1, 1, 0]])
    assert token_mask(batch | {"attention_mask": padding}).tolist() == [[True, True, True, False]]
    assert token_mask(batch, "target").tolist() == [[True, True, True, False]]
    assert token_mask({"inputs_embeds": torch.ones(1, 2, 8)}).shape == (1, 2)


def test_masked_sum_never_sees_what_is_masked():
    values = torch.tensor([[1.0, 2.0, math.nan]])
    total, count = masked_sum(values, torch.tensor([[True, True, False]]))
    assert (total.item(), count.item()) == (3.0, 2)


def test_a_weighted_sum_by_hand():
    seen = []

    def weigh(logits, targets):
        seen.append((logits.requires_grad, logits.dtype, targets.tolist()))
        return torch.tensor([2.0, 0.0])

    logits = LOGITS.bfloat16().requires_grad_()
    total = weighted_cross_entropy_sum(logits, torch.tensor([[0, 0, -100, 2]]), weigh)
    assert total.item() == pytest.approx(-2 * LN(0.5), rel=1e-2)
    total.backward()
    assert seen == [(True, torch.float32, [0, 2])]
    gradient = logits.grad[0].float()
    assert gradient[0].tolist() == pytest.approx([2 * (0.5 - 1), 0.5, 0.5], abs=1e-2)
    assert not gradient[1:].any()


@pytest.mark.parametrize("shape", [(3, 1), (2,), ()])
def test_weights_of_another_shape_are_refused(shape):
    with pytest.raises(RuntimeError):
        weighted_cross_entropy_sum(LOGITS, LABELS, lambda logits, targets: torch.ones(shape))


def test_nothing_to_weigh_is_a_sum_of_zero_with_a_gradient():
    logits = LOGITS.clone().requires_grad_()
    nothing = torch.full((1, 4), -100)
    total = weighted_cross_entropy_sum(logits, nothing, lambda logits, targets: logits.sum(-1))
    total.backward()
    assert total.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
