"""Arms of a study at equal cost and at equal learning."""

from typing import Any

import numpy as np
import pytest
from benchmarks.study.fronts import Curve, front_table
from benchmarks.study.measuring import AS_TRAINED
from benchmarks.study.plan import Arm, Study

GAINS = {"KL 0.01": 0.4, "KL 0.03": 0.6, AS_TRAINED: 1.0}
KLS = {"KL 0.01": 0.0064, "KL 0.03": 0.0225, AS_TRAINED: 0.09}


def cell(
    arm: str = "full", rate: float = 1e-3, seed: int = 0, better: float = 0.0, rows: int = 0
) -> dict[str, Any]:
    """A cell that gains so much on each text; with rows, a document is as far as its number."""

    def told(base: float, loss: float, kl: float) -> dict[str, Any]:
        one: dict[str, Any] = {"base": base, "loss": loss, "kl": kl}
        if rows:
            share = np.linspace(0.5, 1.5, rows)
            documents = [[10, 10 * base, 10 * (base + (loss - base) * s), 10 * kl] for s in share]
            one["documents"] = documents
        return one

    settings = {}
    for label, gain in GAINS.items():
        new, own = told(2.0, 2.0 - gain - better, KLS[label]), told(1.0, 1.0, KLS[label])
        less = told(1.0, 1.0, KLS[label] / 2)
        sets = {"new": new, "own": own, "own_chat": less}
        chosen = {f"chosen {name}": one for name, one in sets.items()}
        settings[label] = {"dial": 0.5, "sets": sets | chosen}
    return {"arm": arm, "shift": "gsm8k", "rate": rate, "seed": seed, "settings": settings}


def test_between_settings_gain_is_linear_in_the_root_of_kl() -> None:
    curve = Curve.of(cell())
    at = {kl: float(curve.gain_at(kl)[0]) for kl in (0.0064, 0.01, 0.0225, 0.09, 1.0, 0.0016)}
    assert at[0.0064] == pytest.approx(0.4) and at[0.0225] == pytest.approx(0.6)
    assert at[0.01] == pytest.approx(0.4 + 0.2 * (0.1 - 0.08) / (0.15 - 0.08))
    assert at[0.0016] == pytest.approx(0.2)  # half of the root: from the base
    assert at[0.09] == at[1.0] == pytest.approx(1.0)  # no more than as trained
    back = [float(curve.kl_at(np.full(2001, gain))[0]) for gain in (0.2, 0.4, 0.6, 0.8)]
    assert back == pytest.approx([0.0016, 0.0064, 0.0225, ((0.15 + 0.3) / 2) ** 2])
    assert np.isinf(curve.kl_at(np.full(2001, 1.01))).all()


def test_what_costs_more_and_gains_less_is_not_taken() -> None:
    worse = cell()
    worse["settings"][AS_TRAINED]["sets"]["new"]["loss"] = 1.9
    assert float(Curve.of(worse).gain_at(0.09)[0]) == pytest.approx(0.6)


def study(**values: Any) -> Study:
    arms = {"full": Arm(rates=[1e-3, 3e-3]), "other": Arm()}
    return Study(base="demo", shifts=["gsm8k"], arms=arms, budgets=[0.01, 0.03], **values)


def test_a_table_at_equal_kl_and_at_equal_learning() -> None:
    table = front_table(study(), [cell(), cell("other", better=0.1)], "gsm8k")
    assert table is not None
    full, other = ([one.strip() for one in line.split("|")] for line in table.splitlines()[2:])
    first = 100 * (0.4 + 0.2 * 2 / 7)
    assert full[2:4] == [f"{first:.1f}", "-"]
    assert other[3] == "+10.0"
    assert full[6] == "0.0132"  # half: the root is 0.08 + 0.07 / 2
    assert full[8] != "-"


def test_the_rate_is_chosen_on_what_may_be_chosen_on() -> None:
    low, high = cell(), cell(rate=3e-3)
    for label in GAINS:  # told better, chosen worse
        high["settings"][label]["sets"]["new"] = {"base": 2.0, "loss": 0.1, "kl": 0.0}
        high["settings"][label]["sets"]["chosen new"] = {"base": 2.0, "loss": 1.9, "kl": 0.0}
    alone = front_table(study(), [low], "gsm8k")
    assert front_table(study(), [low, high], "gsm8k") == alone


def test_intervals_are_paired_and_of_documents() -> None:
    cells = [cell(rows=32, seed=s) for s in (0, 1)] + [
        cell("other", better=0.1, rows=32, seed=s) for s in (0, 1)
    ]
    table = front_table(study(), cells, "gsm8k")
    assert table is not None
    full, other = ([one.strip() for one in line.split("|")] for line in table.splitlines()[2:])
    # Each share is of the same documents as the yardstick's, which vary alike: nothing is left.
    assert full[2].startswith("45.7 ± 0.0")
    ahead, low, high = (float(x.strip("[,]")) for x in other[3].split())
    assert low <= ahead <= high and high - low < 0.5


def test_nothing_is_told_without_a_yardstick_that_learned() -> None:
    assert front_table(study(), [cell("other")], "gsm8k") is None
    assert front_table(study(), [cell(better=-2.0)], "gsm8k") is None
