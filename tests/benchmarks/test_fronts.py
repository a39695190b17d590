"""Arms of a study at equal cost and at equal learning."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from benchmarks.study.fronts import Curve, front_tables
from benchmarks.study.measuring import AS_TRAINED
from benchmarks.study.plan import Arm, Study

GAINS = {"KL 0.01": 0.4, "KL 0.03": 0.6, AS_TRAINED: 1.0}
KLS = {"KL 0.01": 0.0064, "KL 0.03": 0.0225, AS_TRAINED: 0.04}


def cell(
    arm: str = "full",
    rate: float = 1e-3,
    seed: int = 0,
    better: float = 0.0,
    spread: Sequence[float] = (),
) -> dict[str, Any]:
    """A cell that gains so much on each text; the loss of a document is off by its spread."""

    def told(base: float, loss: float, kl: float) -> dict[str, Any]:
        one: dict[str, Any] = {"base": base, "loss": loss, "kl": kl}
        if spread:
            documents = [[10, 10 * base, 10 * (loss + by), 10 * kl] for by in spread]
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


def numbers(table: str | None, arm: str) -> list[str]:
    """The cells of an arm in the first table, then in the second."""
    assert table is not None
    lines = [[one.strip() for one in line.split("|")] for line in table.splitlines()]
    return [one for line in lines if line[1:2] == [arm] for one in line[2:-1]]


def test_between_settings_gain_is_linear_in_the_root_of_kl() -> None:
    curve = Curve.of(cell())
    at = {kl: float(curve.gain_at(kl)[0]) for kl in (0.0064, 0.01, 0.0225, 0.04, 1.0, 0.0016)}
    assert at[0.0064] == pytest.approx(0.4) and at[0.0225] == pytest.approx(0.6)
    assert at[0.01] == pytest.approx(0.4 + 0.2 * (0.1 - 0.08) / (0.15 - 0.08))
    assert at[0.0016] == pytest.approx(0.2)  # half of the root: from the base
    assert at[0.04] == at[1.0] == pytest.approx(1.0)  # no more than as trained
    bounds = [curve.kl_at(np.full(2001, gain)) for gain in (0.2, 0.4, 0.6, 0.8)]
    assert [low[0] for low, _ in bounds] == [high[0] for _, high in bounds]
    known = [0.0016, 0.0064, 0.0225, ((0.15 + 0.2) / 2) ** 2]
    assert [low[0] for low, _ in bounds] == pytest.approx(known)
    assert np.isinf(curve.kl_at(np.full(2001, 1.01))[1][0])


def test_between_far_settings_a_kl_is_told_as_a_range() -> None:
    far = cell()
    for name in ("own", "chosen own"):
        far["settings"][AS_TRAINED]["sets"][name] = {"base": 1.0, "loss": 1.0, "kl": 0.5}
    (low,), (high,) = ([float(b[0])] for b in Curve.of(far).kl_at(np.full(2001, 0.8)))
    assert (low, high) == pytest.approx((0.0225, 0.5))
    table = front_tables(study(), [far], "gsm8k")
    assert table is not None and "0.022 to 0.500 " in table


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_setting_at_which_a_model_has_diverged_is_none(bad: float) -> None:
    diverged = cell()
    diverged["settings"][AS_TRAINED]["sets"]["new"]["loss"] = bad
    assert float(Curve.of(diverged).gain_at(1.0)[0]) == pytest.approx(0.6)
    assert front_tables(study(), [diverged], "gsm8k") is None  # nobody knows what is a share of it


def test_what_costs_more_and_gains_less_is_not_taken() -> None:
    worse = cell()
    worse["settings"][AS_TRAINED]["sets"]["new"]["loss"] = 1.9
    assert float(Curve.of(worse).gain_at(0.04)[0]) == pytest.approx(0.6)


def study(**values: Any) -> Study:
    arms = {"full": Arm(rates=[1e-3, 3e-3]), "other": Arm()}
    return Study(base="demo", shifts=["gsm8k"], arms=arms, budgets=[0.01, 0.03], **values)


def test_a_table_at_equal_kl_and_at_equal_learning() -> None:
    table = front_tables(study(), [cell(), cell("other", better=0.1)], "gsm8k")
    full, other = numbers(table, "full"), numbers(table, "other")
    first = 100 * (0.4 + 0.2 * 2 / 7)
    assert full[:2] == [f"{first:.1f}", "-"]
    assert other[1] == "+10.0"
    assert (full[4], other[4]) == ("100.0", "110.0")
    assert full[5] == "0.0132"  # half: the root is 0.08 + 0.07 / 2
    assert full[7] != "-"
    assert other[8:] == ["0.0400 / 0.0200"]


def test_the_rate_is_chosen_on_what_may_be_chosen_on() -> None:
    low, high = cell(), cell(rate=3e-3)
    for label in GAINS:  # told better, chosen worse
        high["settings"][label]["sets"]["new"] = {"base": 2.0, "loss": 0.1, "kl": 0.0}
        high["settings"][label]["sets"]["chosen new"] = {"base": 2.0, "loss": 1.9, "kl": 0.0}
    alone = front_tables(study(), [low], "gsm8k")
    assert front_tables(study(), [low, high], "gsm8k") == alone


def test_an_interval_is_that_of_documents_which_all_arms_share() -> None:
    spread = [float(x) for x in np.random.default_rng(1).normal(0, 0.2, 64)]
    spread = [x - float(np.mean(spread)) for x in spread]
    cells = [cell(spread=spread), cell("other", better=0.1, spread=spread)]
    full, other = (numbers(front_tables(study(), cells, "gsm8k"), n) for n in ("full", "other"))
    # A share g / m of documents whose numerator and denominator both vary by e:
    # its standard error is (1 / m - g / m^2) * e.
    first, low, high = (float(x.strip("[],")) for x in full[0].split())
    gain, error = 0.4 + 0.2 * 2 / 7, float(np.std(spread)) / 8
    assert first == pytest.approx(100 * gain, abs=0.1)
    assert (high - low) / 2 == pytest.approx(100 * 1.96 * (1 - gain) * error, rel=0.15)
    # One arm is ahead of the other by the same on each: only the denominator is left.
    ahead, least, most = (float(x.strip("[],")) for x in other[1].split())
    assert ahead == pytest.approx(10.0) and 0.2 < most - least < 1.2
    assert (most - least) / 2 == pytest.approx(100 * 1.96 * 0.1 * error, rel=0.2)


def test_no_interval_is_told_where_documents_are_missing() -> None:
    spread = [-0.1, 0.1, 0.0, 0.2, -0.2, 0.05, -0.05, 0.0]
    table = front_tables(study(), [cell(), cell("other", spread=spread)], "gsm8k")
    *shares, kl = numbers(table, "other")
    assert not any("[" in share for share in shares)
    assert kl == "0.0400 [0.0400, 0.0400] / 0.0200 [0.0200, 0.0200]"  # its own documents suffice


def test_arms_are_compared_by_the_seeds_that_both_have() -> None:
    cells = [cell(seed=0), cell(seed=1, better=0.3), cell("other", seed=1, better=0.4)]
    other = numbers(front_tables(study(), cells, "gsm8k"), "other")
    most = 1.0 + 0.15  # of both seeds
    assert other[1] == f"{100 * 0.1 / most:+.1f}"
    assert numbers(front_tables(study(), cells, "gsm8k"), "full")[0].endswith("± 13.0")


def test_nothing_is_told_without_a_yardstick_that_learned() -> None:
    assert front_tables(study(), [cell("other")], "gsm8k") is None
    assert front_tables(study(), [cell(better=-2.0)], "gsm8k") is None
