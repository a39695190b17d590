"""A gate's verdicts: by hand, by simulation, and what it refuses to judge."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.evaluate.judged import ARC, MATHS, evaluation, item, rights

from controlllm.common.errors import ConfigError, DataError
from controlllm.evaluate import Gate, Rule, Subject, judge, read_evaluations, read_gate
from controlllm.evaluate.suites import load_suite

KEEP = Rule("gsm8k", reading="strict", not_below=-0.02)
GAIN = Rule("gsm8k", reading="strict", at_least=0.05)


def verdict(one, *rules, **more):
    """The word of a gate."""
    return judge([one], Gate(rules, **more)).verdict.value


def test_a_drop_within_the_margin_passes_and_one_beyond_fails():
    # 1 of 3,000 items is lost: -0.0003, and the interval is a tenth of a point wide.
    assert verdict(evaluation(rights(1500, 1499, 3000)), KEEP) == "PASS"
    # 300 of 3,000 are lost: -0.1.
    assert verdict(evaluation(rights(1500, 1200, 3000)), KEEP) == "FAIL"
    # 6 of 300 are lost: the estimate lies on the bound.
    assert verdict(evaluation(rights(150, 144)), KEEP) == "INCONCLUSIVE"


def test_a_gain_must_be_shown():
    assert verdict(evaluation(rights(100, 160)), GAIN) == "PASS"  # +0.2
    assert verdict(evaluation(rights(100, 100)), GAIN) == "FAIL"
    assert verdict(evaluation(rights(100, 118)), GAIN) == "INCONCLUSIVE"  # +0.06


def test_the_interval_is_that_of_the_level_and_the_verdict_follows_from_it():
    one = evaluation(rights(100, 118))
    (ruling,) = judge([one], Gate((GAIN,), level=0.95)).rulings
    changed = np.array([1.0] * 19 + [0.0] * 282 + [-1.0])  # one more won, and one lost
    error = changed.std(ddof=1) / 302**0.5
    assert ruling.value.estimate == pytest.approx(0.06)
    low = changed.mean() - 1.64996 * error  # t, 299 degrees
    assert ruling.value.low == pytest.approx(low, abs=1e-4)
    assert judge([one], Gate((GAIN,), level=0.7)).verdict == "PASS"
    # (1.6449 + 0.8416)^2 * 0.0625 / 0.01^2
    assert ruling.items_to_decide == pytest.approx(3862, abs=3)


def test_fewer_bits_are_better():
    pair = tuple(
        tuple(item("gsm8k", doc, bits_per_byte=1 + doc % 7 / 10 + more) for doc in range(50))
        for more in (0, 0.03)
    )
    rule = Rule("gsm8k", reading="bits_per_byte", not_above=0.05)
    (ruling,) = judge([evaluation(pair)], Gate((rule,))).rulings
    assert ruling.verdict == "PASS" and ruling.value.estimate == pytest.approx(0.03)
    assert verdict(evaluation(pair), replace(rule, not_above=0.02)) == "FAIL"
    assert verdict(evaluation(pair), replace(rule, not_above=-0.01)) == "FAIL"
    assert verdict(evaluation(pair[::-1]), replace(rule, not_above=-0.01)) == "PASS"


def test_a_share_is_that_of_the_model_by_wilson():
    pair = tuple(
        tuple(item("gsm8k", doc, strict=1.0, cut_off=doc < cut) for doc in range(200))
        for cut in (200, 8)
    )
    rule = Rule("gsm8k", share="cut_off", not_above=0.1)
    (ruling,) = judge([evaluation(pair)], Gate((rule,))).rulings
    assert ruling.verdict == "PASS" and ruling.value.estimate == pytest.approx(0.04)
    # Wilson's ends for 8 of 200 at 90 %, by his formula.
    z, p, n = 1.6448536, 0.04, 200
    middle, wide = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    ends = [(middle - wide) / (1 + z * z / n), (middle + wide) / (1 + z * z / n)]
    assert [ruling.value.low, ruling.value.high] == pytest.approx(ends, abs=1e-6)
    assert verdict(evaluation(pair), replace(rule, not_above=0.03)) == "INCONCLUSIVE"
    assert verdict(evaluation(pair), replace(rule, not_above=0.02)) == "FAIL"
    assert verdict(evaluation(pair[::-1]), rule) == "FAIL"


@pytest.mark.parametrize(("truth", "most"), [(-0.002, "PASS"), (-0.1, "FAIL")])
def test_simulated_models_are_judged_as_they_are(truth, most):
    words = [verdict(simulated(seed, truth, 1000, lost=0.02), KEEP) for seed in range(40)]
    assert words.count(most) >= 30  # the one has 88 % power
    assert ({"PASS": "FAIL", "FAIL": "PASS"}[most]) not in words


def test_a_model_on_the_bound_passes_as_rarely_as_the_level_says():
    words = [verdict(simulated(seed, -0.02, 200), KEEP) for seed in range(200)]
    # Expected 5 % each; four standard errors of 200 draws are 6.2 %.
    assert words.count("PASS") / 200 < 0.112 and words.count("FAIL") / 200 < 0.112
    assert words.count("PASS") > 1 and words.count("FAIL") > 1


def simulated(seed, truth, n, lost=0.08):
    """Items of a base with 60 %, and of a model that loses a share and wins that and `truth`."""
    generator = np.random.default_rng(seed)
    base = generator.random(n) < 0.6
    lost = max(lost, -truth)
    keeps = generator.random(n) >= lost / 0.6
    tuned = np.where(base, keeps, generator.random(n) < (lost + truth) / 0.4)
    return evaluation(
        tuple(
            tuple(item("gsm8k", doc, strict=float(right)) for doc, right in enumerate(side))
            for side in (base, tuned)
        )
    )


def test_holm_holds_every_verdict_to_more():
    # As few as pass by themselves do not beside a second rule that is open.
    low = next(
        won
        for won in range(150, 250)
        if verdict(evaluation(rights(1000, 1000 + won, 3000)), GAIN) == "PASS"
    )
    one = evaluation(rights(1000, 1000 + low, 3000))
    other = replace(GAIN, at_least=(low + 1) / 3000)  # the estimate lies just below
    assert verdict(one, GAIN) == "PASS"
    single = judge([one], Gate((GAIN, other))).rulings
    both = judge([one], Gate((GAIN, other), correction="holm")).rulings
    assert [ruling.verdict for ruling in single] == ["PASS", "INCONCLUSIVE"]
    assert [ruling.verdict for ruling in both] == ["INCONCLUSIVE", "INCONCLUSIVE"]
    assert both[0].value.low < single[0].value.low
    sure = judge([one], Gate((replace(GAIN, at_least=0.01), other), correction="holm")).rulings
    assert sure[0].verdict == "PASS"
    # The sure one is held to half the error; what is left is held to all of it.
    assert sure[1].value.low == pytest.approx(single[1].value.low)


def test_holm_is_right_where_all_models_are_on_the_bound():
    """Eight rules on eight numbers that lost just the margin: hardly ever does one of them pass."""
    asked = tuple(replace(MATHS, name=f"m{part}") for part in range(8))
    rules = tuple(replace(KEEP, benchmark=one.name) for one in asked)
    passed = {"holm": 0, "none": 0}
    for seed in range(25):
        parts = [simulated(seed * 8 + part, -0.02, 100).items for part in range(8)]
        pairs = [
            [[replace(one, benchmark=name) for one in items] for items in part.values()]
            for name, part in zip((one.name for one in asked), parts, strict=True)
        ]
        one = evaluation(*pairs, asked=asked)
        for correction in passed:
            found = judge([one], Gate(rules, correction=correction)).rulings
            passed[correction] += any(ruling.verdict == "PASS" for ruling in found)
    assert passed["holm"] <= 5  # expected 1.25
    assert passed["none"] >= 4  # expected 8.4


def test_all_rules_must_hold_and_the_worst_word_counts():
    one = evaluation(
        rights(1500, 1499, 3000),
        rights(100, 60, 300, "arc_easy", "choice"),
        asked=(MATHS, ARC),
    )
    lost = Rule("arc_easy", reading="choice", not_below=-0.02)
    open_ = Rule("arc_easy", reading="choice", not_below=-0.13)
    assert verdict(one, KEEP, lost) == "FAIL"
    assert verdict(one, KEEP, open_) == "INCONCLUSIVE"
    assert verdict(one, KEEP, open_, lost) == "FAIL"
    found = judge([one], Gate((KEEP, lost)))
    assert found.reason.startswith(
        "1 of 2 rules broken: arc_easy choice -13.3 points (-16.6 to -9.9), "
    )
    assert found.to_dict()["rules"][1]["verdict"] == "FAIL"


def test_a_star_means_each_benchmark_that_has_the_number():
    one = evaluation(
        rights(100, 100), rights(100, 100, 300, "arc_easy", "choice"), asked=(MATHS, ARC)
    )
    (ruling,) = judge([one], Gate((Rule("*", reading="choice", not_below=-0.02),))).rulings
    assert (ruling.rule.suite, ruling.rule.benchmark) == ("s", "arc_easy")
    with pytest.raises(ConfigError, match="rule 1: no benchmark has bits_per_byte"):
        judge([one], Gate((Rule("*", reading="bits_per_byte", not_above=0.1),)))


def test_names_that_are_not_there_are_refused_with_the_nearest():
    one = evaluation(rights(100, 100))
    for rule, told in (
        (replace(KEEP, benchmark="gsm8"), "rule 1: benchmark='gsm8'.*Did you mean 'gsm8k'"),
        (replace(KEEP, suite="t"), "rule 1: suite='t'.*allowed: s"),
        (replace(KEEP, reading="choice"), "rule 1: gsm8k has no choice; .*: strict"),
        (Rule("gsm8k", share="cut_off", not_above=0.1), "rule 1: gsm8k has no cut_off"),
    ):
        with pytest.raises(ConfigError, match=told):
            judge([one], Gate((rule,)))
    with pytest.raises(ConfigError, match=r"model='tunde'.*Did you mean 'tuned'"):
        judge([one], Gate((KEEP,)), "tunde")


def test_a_benchmark_of_two_suites_needs_its_suite():
    both = [evaluation(rights(100, 100)), evaluation(rights(100, 20), suite="t")]
    with pytest.raises(ConfigError, match="in the suites s, t; say which"):
        judge(both, Gate((KEEP,)))
    assert judge(both, Gate((replace(KEEP, suite="t"),))).verdict == "FAIL"


def test_which_model_is_judged():
    one = evaluation(rights(100, 20), label="alpha 0.3")
    assert judge([one], Gate((KEEP,))).model == "alpha 0.3"
    more = replace(
        one,
        models=(*one.models, Subject("alpha 1", "x")),
        items={**one.items, "alpha 1": one.items["base"]},
    )
    with pytest.raises(ConfigError, match=r"--model, one of alpha 0\.3, alpha 1"):
        judge([more], Gate((KEEP,)))
    assert judge([more], Gate((KEEP,)), "alpha 1").verdict == "PASS"
    alone = replace(one, models=one.models[:1], items={"base": one.items["base"]})
    with pytest.raises(DataError, match="no base and trained model"):
        judge([alone], Gate((KEEP,)))


def test_items_that_do_not_pair_are_refused():
    base, tuned = rights(100, 100)
    with pytest.raises(DataError, match="asked with other words"):
        judge([evaluation((base, (replace(tuned[0], prompt="x"), *tuned[1:])))], Gate((KEEP,)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rules: []", "0 entries"),
        ("[1]", "no gate"),
        ("{level: 95, rules: [{benchmark: a, reading: strict, at_least: 0}]}", "level=95"),
        ("{level: .nan, rules: [{benchmark: a, reading: strict, at_least: 0}]}", "level=nan"),
        ("{corection: holm, rules: []}", "corection.*correction"),
        ("{correction: bonferroni, rules: []}", "bonferroni"),
        ("rules: [{benchmark: a, reading: strickt, at_least: 0}]", "Did you mean 'strict'"),
        ("rules: [{benchmark: a, share: cutoff, not_above: 0.1}]", "Did you mean 'cut_off'"),
        ("rules: [{benchmark: a, reading: strict, atleast: 0.1}]", "at_least"),
        ("rules: [{benchmark: a, reading: strict}]", "rule 1: give one bound"),
        ("rules: [{benchmark: a, not_above: 0.1}]", "either reading or share"),
        ("rules: [{benchmark: a, reading: strict, not_below: -2}]", "two points is -0.02"),
        ("rules: [{benchmark: a, reading: strict, not_below: 0.02}]", "asked for by at_least"),
        ("rules: [{benchmark: a, reading: strict, at_least: 5}]", "five points are 0.05"),
        ("rules: [{benchmark: a, reading: strict, not_above: 0.1}]", "a higher strict is better"),
        ("rules: [{benchmark: a, reading: bits_per_byte, at_least: 0.1}]", "fewer bits_per_byte"),
        ("rules: [{benchmark: a, share: cut_off, not_above: 10}]", "10 % are 0.1"),
        ("rules: [{benchmark: a, share: cut_off, at_least: 0.1}]", "not_below or not_above"),
        ("rules: [{benchmark: a, reading: strict, at_least: .inf}]", "no finite number"),
        ("rules: [{benchmark: a, reading: strict, at_least: true}]", "must be a number"),
        ("rules: [{set: retain/wiki, forgetting: , not_above: 0.01}]", "set is not known"),
        ("rules: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_refused(tmp_path, text, told):
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as error:
        read_gate(path)
    assert "gate.yaml" in str(error.value)


def test_a_gate_is_read(tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text(
        "level: 0.9\ncorrection: holm\nrules:\n"
        "  - {benchmark: gsm8k, reading: strict, not_below: -0.02}\n"
        "  - {benchmark: gsm8k, reading: strict, at_least: 5e-2, suite: s}\n"
    )
    assert read_gate(path) == Gate((KEEP, replace(GAIN, suite="s")), 0.9, "holm")


def test_a_reading_that_is_no_number_is_told_with_its_item(tmp_path):
    base, tuned = rights(1, 1, 3)
    tuned = (*tuned[:2], replace(tuned[2], bits_per_byte=float("nan")))
    evaluation((base, tuned)).save(tmp_path / "evaluations" / "s")
    with pytest.raises(DataError, match=r"items-1.jsonl:3: bits_per_byte=nan is no finite"):
        read_evaluations(tmp_path)


def test_evaluations_of_a_run_and_of_a_folder(tmp_path):
    one = evaluation(rights(1, 2, 3))
    one.save(tmp_path / "evaluations" / "s")
    one.save(tmp_path / "evaluations" / ".s.being-written")
    assert read_evaluations(tmp_path) == (one,)
    assert read_evaluations(tmp_path / "evaluations" / "s") == (one,)
    assert read_evaluations(tmp_path / "evaluations") == (one,)
    other = replace(one, suite="t")
    other.save(tmp_path / "evaluations" / "checkpoint-5" / "t")
    (tmp_path / "checkpoint-5").mkdir()
    assert read_evaluations(tmp_path / "checkpoint-5") == (other,)
    assert read_evaluations(tmp_path) == (one,)
    with pytest.raises(DataError, match="controlllm eval"):
        read_evaluations(tmp_path / "evaluations" / "checkpoint-6")


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted((RECIPES / "gates").glob("*.yaml")), ids=lambda p: p.stem)
def test_gates_of_recipes_name_what_their_suites_have(path):
    assert (RECIPES / path.name).is_file()
    for rule in read_gate(path).rules:
        kinds = {one.name: one.kind for one in load_suite(rule.suite).benchmarks}
        assert rule.benchmark in kinds
        written = kinds[rule.benchmark] != "choice"
        assert rule.reading == "bits_per_byte" or written != (rule.reading == "choice"), rule
