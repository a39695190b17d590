import math

import pytest
import torch
from tests.evaluate.samples import LN, SAME, Bigram, packed, padded

from controlllm.common.distributed import Ranks
from controlllm.common.errors import DataError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.evaluate import LossReport, evaluate_losses, evaluating
from controlllm.evaluate.forgetting.losses import deal


def test_loss_by_hand():
    # 0 0 1: one repetition (3/4), one change (1/4); 1 1 1 1: three repetitions.
    report = evaluate_losses(Bigram(SAME), [padded([[0, 0, 1], [1, 1, 1, 1]])])
    assert report.tokens == 5
    assert report.loss == pytest.approx(-(4 * LN(0.75) + LN(0.25)) / 5, rel=1e-6)
    assert report.perplexity == pytest.approx(math.exp(report.loss))


def test_perplexity_beyond_a_float_is_inf():
    assert LossReport(loss=1e4, tokens=1).perplexity == math.inf


def test_zero_weights_give_the_uniform_loss(pico_llama, documents):
    model = pico_llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert evaluate_losses(model, [padded(documents)]).loss == pytest.approx(LN(259), rel=1e-6)


def test_batch_splits_padding_and_packing_change_nothing(pico_llama, documents):
    model = pico_llama()
    whole = evaluate_losses(model, [padded(documents)])
    assert whole.tokens == sum(len(document) - 1 for document in documents)
    ways = [
        [padded([document]) for document in documents],
        [padded(documents[:1]), padded(documents[1:])],
        [packed(documents)],
        [packed(documents[:2]), packed(documents[2:])],
    ]
    for batches in ways:
        report = evaluate_losses(model, batches)
        assert report.tokens == whole.tokens
        assert report.loss == pytest.approx(whole.loss, abs=1e-5)


def test_the_loss_equals_that_of_transformers(pico_llama, documents):
    model = pico_llama()
    batch = padded(documents)
    with torch.no_grad():
        expected = model(**{k: v for k, v in batch.items() if k != "origin"}).loss.item()
    assert evaluate_losses(model, [batch]).loss == pytest.approx(expected, abs=1e-6)


def test_evaluation_is_without_dropout_and_leaves_the_modes_as_they_were(pico_llama, documents):
    model = pico_llama(attention_dropout=0.5).train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    first, second = (evaluate_losses(model, [padded(documents)]) for _ in range(2))
    assert first == second
    assert [module.training for module in model.modules()] == modes


def test_modes_and_gradients_come_back_after_an_error(pico_llama):
    model = pico_llama().train()
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        raise KeyError
    assert model.training and torch.is_grad_enabled()


@pytest.mark.parametrize("batches", [[], [padded([[1]])]])
def test_a_set_without_targets_is_an_error(batches):
    with pytest.raises(DataError, match="no target tokens"):
        evaluate_losses(Bigram(SAME), batches)


def test_a_batch_without_labels_is_an_error():
    batch = padded([[0, 1]])
    del batch["labels"]
    with pytest.raises(DataError, match=r"needs 'labels'.*attention_mask, input_ids"):
        evaluate_losses(Bigram(SAME), [batch])


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_batches_are_dealt_out_once_and_everyone_gets_as_many(ranks, pico_llama, documents):
    batches = [padded(documents[:2]), padded(documents[2:3]), padded(documents[1:4])]
    dealt = [list(deal(batches, pico_llama(), Ranks(rank, ranks))) for rank in range(ranks)]
    assert len({len(own) for own in dealt}) == 1
    with_targets = [b for own in dealt for b in own if (b["labels"] != IGNORE_INDEX).any()]
    assert sorted(map(id, with_targets)) == sorted(map(id, batches))
