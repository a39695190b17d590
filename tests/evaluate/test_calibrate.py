import json
import math

import pytest
from tests.evaluate.samples import LN, OTHER, SAME, Bigram, DialledBigram, padded

from controlllm.common.errors import ConfigError, DataError, ModelError
from controlllm.evaluate import calibrate, plot_curves

# The old domain repeats, the new one alternates. With p(same) = 0.75 - alpha / 2 the losses are
# -ln(0.75 - alpha/2) and -ln(0.25 + alpha/2).
RETAIN = {"old": [padded([[0, 0, 0], [1, 1, 1]])]}
LEARN = {"new": [padded([[0, 1, 0], [1, 0, 1]])]}


def budget(alpha: float) -> float:
    """The forgetting at alpha, worked out by hand."""
    return LN(0.75) - LN(0.75 - alpha / 2)


def test_it_picks_the_largest_alpha_within_the_budget():
    model = DialledBigram(SAME, OTHER)
    curve = calibrate(model, LEARN, RETAIN, budget(0.3) + 1e-4, refine_steps=0)
    assert curve.chosen.alpha == 0.3
    assert curve.chosen.learn_loss == pytest.approx(-LN(0.25 + 0.15), rel=1e-6)
    assert curve.chosen.forgetting == pytest.approx(budget(0.3), rel=1e-5)
    assert model.expansion.dial == 0.3
    assert [point.label for point in curve.points][-2:] == ["1", "trained"]


def test_it_refines_between_the_grid():
    curve = calibrate(DialledBigram(SAME, OTHER), LEARN, RETAIN, budget(0.36), refine_steps=2)
    # 0.3 is within, 0.4 is not; 0.35 is within, then 0.375 is not.
    assert curve.chosen.alpha == pytest.approx(0.35)
    alphas = [point.alpha for point in curve.points if point.alpha is not None]
    assert alphas == sorted(alphas) and 0.375 in alphas


def test_a_wide_budget_gives_the_best_learner_and_prefers_a_number_to_the_same_trained_alpha():
    curve = calibrate(DialledBigram(SAME, OTHER), LEARN, RETAIN, 10.0)
    assert curve.chosen.alpha == 1.0
    assert curve.points[-1].learn == curve.chosen.learn


def test_a_trained_gate_that_is_best_is_kept():
    model = DialledBigram(SAME, OTHER)
    curve = calibrate(model, LEARN, RETAIN, 10.0, alphas=[0.5])
    assert curve.chosen.alpha is None and model.expansion.dial is None


def test_no_budget_gives_the_base():
    model = DialledBigram(SAME, OTHER)
    curve = calibrate(model, LEARN, RETAIN, 0.0, alphas=[0.5, 1.0])
    assert curve.chosen.alpha == 0.0 and curve.chosen.forgetting == 0.0
    assert model.expansion.dial == 0.0


def test_the_budget_holds_for_every_retain_set():
    harmless = {"new as well": LEARN["new"]}
    alone = calibrate(DialledBigram(SAME, OTHER), LEARN, RETAIN, 0.2)
    both = calibrate(DialledBigram(SAME, OTHER), LEARN, RETAIN | harmless, 0.2)
    assert both.chosen.alpha == alone.chosen.alpha
    assert both.chosen.forgetting == alone.chosen.forgetting


def test_the_base_is_asked_once_per_batch():
    model = DialledBigram(SAME, OTHER)
    calibrate(model, LEARN, RETAIN, 0.2, alphas=[0.0, 0.5, 1.0], refine_steps=0)
    assert model.forward_passes == {"base": 2, "trained": 2 * 4}


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_budget_that_cannot_be(value):
    with pytest.raises(ConfigError, match="max_forgetting"):
        calibrate(DialledBigram(SAME, OTHER), LEARN, RETAIN, value)


def test_an_alpha_that_cannot_be():
    with pytest.raises(ConfigError, match=r"alpha=1\.5 is outside"):
        calibrate(DialledBigram(SAME, OTHER), LEARN, RETAIN, 0.1, alphas=[0.5, 1.5])


def test_what_is_missing_is_named_and_the_trained_alpha_is_in_force_again():
    model = DialledBigram(SAME, OTHER)
    with pytest.raises(DataError, match="no retain set"):
        calibrate(model, LEARN, {}, 0.1)
    assert model.expansion.dial is None
    with pytest.raises(ModelError, match="averaging_curve"):
        calibrate(Bigram(SAME), LEARN, RETAIN, 0.1)


def test_a_base_whose_loss_is_not_a_number_cannot_be_calibrated():
    broken = [[math.nan] * 2] * 2
    with pytest.raises(ModelError, match="even the base's loss is not a number"):
        calibrate(DialledBigram(broken, OTHER), LEARN, RETAIN, 0.1)


def test_a_setting_whose_loss_is_not_a_number_is_never_chosen():
    model = DialledBigram(SAME, [[math.nan] * 2] * 2)
    assert calibrate(model, LEARN, RETAIN, 0.1).chosen.alpha == 0.0


def test_table_json_and_picture(tmp_path):
    curve = calibrate(DialledBigram(SAME, OTHER), LEARN, RETAIN, 0.2, alphas=[0.2, 0.8])
    table = curve.table().splitlines()
    assert len(table) == 2 + len(curve.points)
    assert sum("chosen" in line for line in table) == 1
    curve.save(tmp_path / "new" / "curve.json")
    saved = json.loads((tmp_path / "new" / "curve.json").read_text())
    assert saved["chosen"] == curve.chosen.alpha
    assert saved["points"][0]["retain"]["old"]["tokens"] == 4
    assert saved["points"][0]["forgetting"] == 0.0
    plot_curves({"one": curve}, tmp_path / "curve.png")
    plot_curves({"one": curve, "two": curve}, tmp_path / "two.png")
    for name in ("curve.png", "two.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
