"""R and its numbers, worked out by hand; documents against the meter; intervals that cover."""

import json
import math

import numpy as np
import pytest
import torch
from tests.evaluate.samples import Bigram, packed, padded

from controlllm.common.errors import ConfigError, DataError
from controlllm.evaluate import evaluate_losses
from controlllm.evaluate.sequence.documents import DocumentLosses, measure_documents, rise
from controlllm.evaluate.sequence.matrix import SequenceMatrix
from controlllm.evaluate.sequence.picture import plot_matrix
from controlllm.evaluate.sequence.tables import matrix_record, numbers_table


def rows(loss: float) -> DocumentLosses:
    """Two documents of two and of four targets that lose `loss` on each."""
    return DocumentLosses((2 * loss, 4 * loss), (2, 4))


def matrix(values: dict[str, list[float]], joint: list[float] | None = None) -> SequenceMatrix:
    """A matrix of these losses."""
    tasks = [*values][1:]

    def row(losses: list[float]) -> dict[str, DocumentLosses]:
        return dict(zip(tasks, map(rows, losses), strict=True))

    cells = {stage: row(losses) for stage, losses in values.items()}
    return SequenceMatrix(cells, None if joint is None else row(joint))


THREE = matrix(
    {"base": [5.0, 6.0, 7.0], "a": [2.0, 5.5, 7.1], "b": [1.8, 3.0, 6.5], "c": [2.6, 3.5, 4.0]},
    joint=[1.9, 2.5, 3.8],
)


def test_the_numbers_of_three_tasks() -> None:
    assert THREE.accuracy == pytest.approx(-(2.6 + 3.5 + 4.0) / 3)
    assert THREE.backward_transfer.mean == pytest.approx((-(2.6 - 2.0) - (3.5 - 3.0)) / 2)
    assert THREE.forward_transfer.mean == pytest.approx(((6.0 - 5.5) + (7.0 - 6.5)) / 2)
    # Task a was best after b, not after it was learned.
    assert THREE.forgetting.mean == pytest.approx(((2.6 - 1.8) + (3.5 - 3.0)) / 2)
    assert THREE.intransigence.mean == pytest.approx(((2.0 - 1.9) + (3.0 - 2.5) + (4.0 - 3.8)) / 3)


def test_one_task_has_no_transfer_and_no_joint_no_intransigence() -> None:
    one = matrix({"base": [5.0], "a": [2.0]})
    assert one.backward_transfer is one.forward_transfer is one.forgetting is None
    assert one.intransigence is None
    record = matrix_record(one, {})
    assert record["BWT"] is None and record["ACC"] == -2.0
    assert "BWT" not in numbers_table(one)


def test_rows_and_tasks_have_to_go_together() -> None:
    with pytest.raises(ConfigError, match="a row for the base and one for each"):
        SequenceMatrix({"base": {"a": rows(1.0)}, "b": {"a": rows(1.0)}})
    with pytest.raises(ConfigError, match="the row joint"):
        SequenceMatrix(THREE.losses, {"a": rows(1.0)})
    with pytest.raises(DataError, match="the same"):
        rise(rows(1.0), DocumentLosses((1.0, 1.0), (3, 3)))


def test_losses_by_document_add_up_to_the_meters(pico_llama, documents) -> None:
    model = pico_llama().eval()
    batches = [padded(documents[:2]), padded(documents[2:])]
    found, whole = measure_documents(model, batches), evaluate_losses(model, batches)
    assert found.loss == pytest.approx(whole.loss, abs=1e-6)
    assert found.targets == tuple(len(document) - 1 for document in documents)


def test_packed_documents_are_units_of_their_own(documents) -> None:
    torch.manual_seed(0)
    model = Bigram(torch.rand(300, 300).tolist())
    one, other = (measure_documents(model, [form(documents)]) for form in (padded, packed))
    assert one.targets == other.targets
    assert one.sums == pytest.approx(other.sums)


def test_bounds_that_are_nowhere_are_null_in_json() -> None:
    """Sets of one document tell nothing of how far others would differ."""
    cells = {t: DocumentLosses((2.0,), (2,)) for t in "ab"}
    record = matrix_record(SequenceMatrix(dict.fromkeys(["base", "a", "b"], cells)), {})
    assert record["BWT"] == {"estimate": 0.0, "low": None, "high": None}
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_spoils_no_other_number(loss, tmp_path) -> None:
    """Run b has diverged: BWT and FWT need it, F does not, as b was no task's best."""
    found = matrix(
        {"base": [5.0, 6.0, 7.0], "a": [2.0, 5.5, 7.1], "b": [loss, loss, loss], "c": [2, 3, 4]}
    )
    record = json.loads(json.dumps(matrix_record(found, {}), allow_nan=False))
    assert record["losses"]["b"] == {"a": None, "b": None, "c": None}
    assert record["BWT"] == record["FWT"] == {"estimate": None, "low": None, "high": None}
    assert record["F"]["estimate"] == pytest.approx((2 - 2 + 3 - 5.5) / 2)
    assert record["ACC"] == -3.0
    assert "nan" in numbers_table(found)
    plot_matrix(found, tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").stat().st_size > 5_000


def test_the_interval_of_a_rise_holds_the_truth() -> None:
    """Documents of very unlike lengths whose rise depends on their length: 400 worlds, 95 %."""
    generator, held, worlds = np.random.default_rng(0), 0, 400
    lengths = generator.integers(20, 400, 200_000)
    truth = (0.3 - lengths / 1000) @ lengths / lengths.sum()
    for _ in range(worlds):
        targets = generator.integers(20, 400, 120)
        risen = (0.3 - targets / 1000 + generator.normal(0, 0.3, 120)) * targets
        before = DocumentLosses(tuple(2.0 * targets), tuple(targets.tolist()))
        after = DocumentLosses(tuple(2.0 * targets + risen), tuple(targets.tolist()))
        inside = rise(before, after).interval()
        held += inside.low <= truth <= inside.high
    assert 0.92 <= held / worlds <= 0.98
