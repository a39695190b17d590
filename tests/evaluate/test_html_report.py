"""The report: hostile texts stay text, the page is whole, and its numbers are the comparison's."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tests.evaluate.judged import ARC, MATHS, evaluation, item, rights

from controlllm.common.errors import ConfigError, DataError
from controlllm.evaluate import Gate, Rule, Subject, compare_models, holm, read_gate
from controlllm.evaluate.judging.html import Piece, cut, page, tag
from controlllm.evaluate.judging.report import ReportSettings, report_page
from controlllm.evaluate.judging.runs import read_runs
from controlllm.evaluate.judging.style import STYLE
from controlllm.evaluate.judging.svg import Axis, Plot, axis_for, bar, ticks
from controlllm.evaluate.statistics import Interval

EVIL = "</script></pre></title><img src=x onerror=alert(1)>]]>'\"><a href=javascript:x>"
STEERS = "\x1b[31mred\x1b[0m\u202ereversed\u200f\u2066\x00\r\x85HALF"
HOSTILE = EVIL + STEERS
VOID = {"meta"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed where it was opened."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.text, self.tables = text, []
        self.open, self.attributes, self.found, self.seen = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.seen.append(name)
        self.attributes += [(name, key, value) for key, value in attributes]
        if name not in VOID:
            self.open.append(name)
        if name == "table":
            self.tables.append([])
        elif name == "tr":
            self.tables[-1].append([])
        elif name in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, name):
        assert self.open.pop() == name, f"{name} is closed at {self.getpos()}"

    def handle_data(self, data):
        if "style" not in self.open:
            self.found.append(data)
        if {"td", "th"} & {*self.open}:
            self.tables[-1][-1][-1] += data

    @property
    def words(self):
        """All that a reader sees."""
        return "".join(self.found)


def harmless(text):
    """The page, if it can neither fetch nor run nor send anything."""
    found = Page(text)
    assert {*found.seen}.isdisjoint({"script", "img", "iframe", "link", "object", "form", "base"})
    for name, key, value in found.attributes:
        assert not key.startswith("on") and key not in ("src", "srcset", "style", "action"), key
        assert key != "href" or re.fullmatch("#[a-z0-9-]+", value), value
        assert name == "meta" or not re.search("https?:|javascript:|url", value or ""), value
    assert "url(" not in text and "@import" not in text
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text
    )
    return found


def saved(folder, *evaluations):
    """A run folder with these evaluations."""
    for number, one in enumerate(evaluations):
        one.save(folder / "evaluations" / f"suite-{number}")
    return folder


def reported(*folders, **settings):
    """The page on some run folders, known to be harmless."""
    return harmless(report_page(read_runs(folders), ReportSettings(**settings)))


def two_benchmarks(**more):
    """gsm8k with all readings, and arc_easy, which got a little worse."""
    maths = tuple(
        tuple(
            item(
                "gsm8k",
                doc,
                strict=float(doc < right),
                lenient=float(doc < right + 10),
                bits_per_byte=1.0 + doc % 5 / 10 - right / 1000,
                in_format=doc % 10 > 0,
                cut_off=doc % 20 == 0,
            )
            for doc in range(200)
        )
        for right in (50, 90)
    )
    return evaluation(
        maths, rights(150, 146, 200, "arc_easy", "choice"), asked=(MATHS, ARC), **more
    )


def test_hostile_texts_stay_text_wherever_they_stand(tmp_path):
    score = dict.fromkeys(("model", "task", "metric"), HOSTILE) | {"value": math.inf}
    one = two_benchmarks(provenance={HOSTILE: HOSTILE}, scores=(score,))
    asked = tuple(
        replace(each, dataset=HOSTILE, licence=HOSTILE, tasks=(HOSTILE,), strict=HOSTILE)
        for each in one.benchmarks
    )
    asked = (replace(asked[0], name=HOSTILE), asked[1])
    label = f"tuned{HOSTILE}"
    items = {
        name: tuple(
            replace(
                each,
                benchmark=HOSTILE if each.benchmark == "gsm8k" else each.benchmark,
                task=HOSTILE,
                question=HOSTILE,
                gold=HOSTILE,
                answer=HOSTILE,
                cluster=HOSTILE + str(each.doc),
            )
            for each in each_items
        )
        for name, each_items in zip(("base", label), one.items.values(), strict=True)
    }
    models = (
        replace(one.models[0], name=HOSTILE, identity={HOSTILE: HOSTILE}),
        Subject(label, HOSTILE, 0.3, {HOSTILE: HOSTILE}),
    )
    one = replace(one, benchmarks=asked, items=items, models=models, suite=HOSTILE)
    folder = saved(tmp_path / "<img src=x onerror=alert(1)>", one)
    for path in (folder / "evaluations").rglob("*.json*"):
        path.write_text(path.read_text().replace("HALF", "\\ud800"))  # half of a letter
    (folder / "config.yaml").write_text(json.dumps({EVIL: HOSTILE}))
    (folder / "generation" / "step-9").mkdir(parents=True)
    learned = (HOSTILE.replace("HALF", "\ud800"),)
    row = {"prompt": HOSTILE, "reference": HOSTILE, "base": None, "tuned": HOSTILE}
    (folder / "generation" / "step-9" / "<b>'x.jsonl").write_text(json.dumps(row) + "\n")
    calibration = folder / "calibrated" / "calibration.json"
    calibration.parent.mkdir()
    calibration.write_text(json.dumps(curve(dial=EVIL)))
    seen = reported(folder, learned=learned)
    assert seen.words.count("<img src=x onerror=alert(1)>") > 30
    assert "␛[31mred" in seen.words and "\\u202ereversed\\u200f" in seen.words
    assert "\\x85\\ud800" in seen.words
    report_page(read_runs([folder])).encode()
    assert "along the dial" in seen.text and "Texts from training" in seen.words


def test_a_long_answer_is_cut_and_its_length_said(tmp_path):
    one = two_benchmarks()
    items = [*one.items["tuned"]]
    items[60] = replace(items[60], answer="A" * 1_000_000, question="q" * 5000 + " the end?")
    one = replace(one, items={**one.items, "tuned": tuple(items)})
    base = [replace(one.items["base"][60], question=items[60].question)]
    one.items["base"] = (*one.items["base"][:60], *base, *one.items["base"][61:])
    seen = reported(saved(tmp_path / "run", one), examples=1000)
    assert len(seen.text) < 400_000
    assert "(the first 1,500 of 1,000,000 characters)" in seen.words
    assert "(the last 1,500 of 5,009 characters)" in seen.words and " the end?" in seen.words


def test_the_page_says_nothing_may_be_loaded():
    meta = re.search('Content-Security-Policy" content="([^"]*)"', page("t", STYLE, None, []))
    assert meta and meta[1].startswith("default-src &#x27;none&#x27;;")
    assert "unsafe" not in meta[1]
    assert "prefers-color-scheme:dark" in STYLE and "@media print" in STYLE


def test_the_numbers_are_those_of_the_comparison(tmp_path):
    one = two_benchmarks()
    seen = reported(saved(tmp_path / "run", one))
    (table,) = [table for table in seen.tables if table[0][0] == "reading"]
    changes = compare_models(one, "tuned")
    p_values = dict(
        zip(
            ("gsm8k", "arc_easy"),
            holm(
                [c.readings[n].p_value for c, n in zip(changes, ("strict", "choice"), strict=True)]
            ),
            strict=True,
        )
    )
    at, checked = None, 0
    for row in table[1:]:
        if len(row) == 1:
            at = next(change for change in changes if row[0].startswith(change.benchmark.name))
            assert at.outcome in row[0] and at.reason in row[0]
            continue
        name = row[0].replace(" ", "_").removeprefix("in_the_") or row[0]
        if name in ("format", "cut_off"):
            shares = at.in_format if name == "format" else at.cut_off
            assert row[1:3] == [f"{100 * share:.1f} %" for share in shares]
            continue
        reading = at.readings[name]
        found = reading.difference.interval()
        if name == "bits_per_byte":
            texts = [f"{reading.base:.3f}", f"{reading.value:.3f}", f"{found.estimate:+.3f}"]
            ends = f"{found.low:+.3f} to {found.high:+.3f}"
        else:
            texts = [f"{100 * v:.1f} %" for v in (reading.base, reading.value)]
            texts.append(f"{100 * found.estimate:+.1f}")
            ends = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}".replace("-0.0", "0.0")
        assert row[1:4] == [text.replace("-", "−") for text in texts]
        assert row[4] == ends.replace("-", "−")
        if name in ("strict", "choice"):
            p = p_values[at.benchmark.name]
            assert row[6] == ("< 0.001" if p < 0.001 else f"{p:.3f}")
        checked += 1
    assert checked == 4
    assert "tuned gained on gsm8k (strict +20.0 points)" in seen.words
    lost = at.flipped()
    assert f"arc_easy: {len(lost)} lost, 0 won (choice)" in seen.words


def test_the_verdict_stands_first(tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text(
        "rules:\n  - {benchmark: gsm8k, reading: strict, at_least: 0.05}\n"
        "  - {benchmark: arc_easy, reading: choice, not_below: -0.03}\n"
    )
    run = saved(tmp_path / "run", two_benchmarks())
    seen = reported(run, gate=read_gate(path))
    start = seen.words.index("INCONCLUSIVE tuned cannot be judged by the gate yet")
    assert start < seen.words.index("tuned gained on gsm8k")
    (table,) = [table for table in seen.tables if table[0][0] == "verdict"]
    assert [row[0] for row in table[1:]] == ["PASS", "INCONCLUSIVE"]
    assert table[1][5] == "at least +5 points" and table[2][7].startswith("about ")
    passed = Gate((Rule("gsm8k", reading="strict", at_least=0.05),))
    assert (
        "PASS tuned may be shipped by the gate: the one rule holds."
        in reported(run, gate=passed).words
    )
    failed = Gate((Rule("gsm8k", reading="strict", at_least=0.5),))
    assert "FAIL tuned must not be shipped" in reported(run, gate=failed).words


def test_the_plane_needs_what_was_to_be_learned(tmp_path):
    run = saved(tmp_path / "run", two_benchmarks())
    assert "Gain against loss" not in reported(run).text
    seen = reported(run, learned=("gsm8k",))
    # Lost: 4 of 200 on arc_easy; gained: 40 of 200 on gsm8k.
    assert "tuned: lost 2.00, gained 20.00" in seen.text
    with pytest.raises(ConfigError, match="Did you mean 'gsm8k'"):
        reported(run, learned=("gsm8",))


def test_several_runs_stand_side_by_side_on_one_base(tmp_path):
    one = two_benchmarks()
    runs = [saved(tmp_path / name, one) for name in ("a", "b")]
    seen = reported(*runs, learned=("gsm8k",))
    assert "Report on a and b" in seen.words and "b · tuned gained on gsm8k" in seen.words
    (table,) = [t for t in seen.tables if t[0] == ["benchmark", "a · tuned", "b · tuned"]]
    assert table[1][1] == table[1][2] == "gained strict +20.0 points"
    twin = saved(tmp_path / "more" / "a", one)
    assert str(twin) in reported(runs[0], twin).words
    with pytest.raises(DataError, match="named twice"):
        reported(runs[0], runs[0])


def test_runs_that_cannot_stand_side_by_side_are_refused(tmp_path):
    one = two_benchmarks()
    run = saved(tmp_path / "a", one)
    models = (replace(one.models[0], identity={"weights": "c"}), one.models[1])
    other = saved(tmp_path / "b", replace(one, models=models))
    with pytest.raises(DataError, match="a and b have no base in common: weights is b and c"):
        reported(run, other)
    fewer = {label: items[1:] for label, items in one.items.items()}
    with pytest.raises(DataError, match="a and c: gsm8k: document 0 of gsm8k was asked of one"):
        reported(run, saved(tmp_path / "c", replace(one, items=fewer)))
    alone = replace(one, models=one.models[:1], items={"base": one.items["base"]})
    with pytest.raises(DataError, match="no base and trained model to compare"):
        reported(saved(tmp_path / "d", alone))
    with pytest.raises(DataError, match="controlllm eval"):
        reported(tmp_path)


def curve(dial="alpha"):
    """A calibration as `calibrate` writes it."""

    def set_at(loss):
        return {"s": {"base_loss": 2.0, "loss": loss, "kl": 0.1, "tokens": 9}}

    points = [
        {
            "alpha": alpha,
            "learn": set_at(2 - alpha),
            "retain": set_at(2 + alpha / 10),
            "learn_loss": 2 - alpha,
            "forgetting": alpha / 10,
        }
        for alpha in (0.0, 0.5, 1.0)
    ]
    points.append(points[1] | {"alpha": None, "learn_loss": math.nan})
    return {"dial": dial, "max_forgetting": 0.05, "chosen": 0.5, "points": points}


def test_losses_and_the_dial_of_a_run_are_drawn(tmp_path):
    run = saved(tmp_path / "run", two_benchmarks())
    names = ("learn/new/loss", "learn/new/base_loss", "learn/new/gain")
    names += ("retain/old/loss", "retain/old/base_loss", "retain/old/forgetting")
    history = [{"step": 0, "train/loss": 3.0}]
    names += ("generation/new/rouge1", "generation/new/base_rouge1", "generation/new/rows")
    history += [{"step": s, **dict.fromkeys(names, 1.0 + s)} for s in (0, 5, 10)]
    history[2] |= {"retain/old/forgetting": math.nan, "learn/new/loss": "x"}
    checkpoint = run / "checkpoint-10"
    checkpoint.mkdir()
    (checkpoint / "state.json").write_text(json.dumps({"step": 10, "history": history}))
    (run / "calibrated").mkdir()
    (run / "calibrated" / "calibration.json").write_text(json.dumps(curve()))
    seen = reported(run)
    assert "Losses of the sets to learn" in seen.text
    assert "Forgetting of the sets to retain" in seen.text
    assert "Gain against forgetting of the held-out sets" in seen.text
    assert "new: rouge1" in seen.words and "new: rows" not in seen.words
    assert "0.5 (chosen)" in seen.words and "the budget of 0.05" in seen.words
    assert "nan" not in re.sub("[a-z]{2,}nan|nan[a-z]+", "", seen.text.split("</style>")[1])


def test_own_text_stands_beside_its_bound(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoint-6").mkdir(parents=True)
    moved = {"own_text": (0.0123, 0.01561), "a/own_text": (0.002, math.inf), "old": (0.5, None)}
    row = {f"retain/{name}/kl": kl for name, (kl, _) in moved.items()}
    row |= {f"retain/{name}/kl_upper": up for name, (_, up) in moved.items() if up is not None}
    history = [{"step": 0, **dict.fromkeys(row, 0.0)}, {"step": 6, **row}]
    (run / "checkpoint-6" / "state.json").write_text(json.dumps({"step": 6, "history": history}))
    two = curve("weights") | {"chosen": {"a": 0.5, "b": 1.0}}
    for point in two["points"]:
        point["alpha"] = {"a": 0.5, "b": point["alpha"]}
    one = {"kl": 0.008, "upper": 0.02, "level": 0.95, "sequences": 64, "tokens": 16320}
    two["certificates"] = {HOSTILE: one, "none": one | {"upper": None}}
    (run / "calibration.json").write_text(json.dumps(two))
    seen = reported(run)
    (rows,) = [table for table in seen.tables if table[0][0] == "own text"]
    assert rows[1][:5] == ["own_text", "in training, step 6", "0.0123", "≤ 0.016", "≤ 0.089"]
    assert rows[2][3] == "no bound" and rows[2][0] == "a/own_text"
    assert rows[3][1:] == [
        *("calibrated, weights a 0.5, b 1", "0.0080", "≤ 0.020", "≤ 0.100", "64", "16,320")
    ]
    assert rows[4][3] == "no bound" and len(rows) == 5
    assert "KL on own text" in seen.text
    assert "a 0.5, b 1 (chosen)" in seen.words


def test_a_run_without_benchmarks_shows_what_it_has(tmp_path):
    calibration = tmp_path / "run" / "calibration.json"
    calibration.parent.mkdir()
    calibration.write_text(json.dumps(curve()))
    seen = reported(calibration.parent)
    assert "run was asked no benchmark" in seen.words and "Calibration" in seen.words


def test_the_dial_of_benchmarks_is_drawn_where_alphas_were_measured(tmp_path):
    one = two_benchmarks()
    models = (one.models[0], Subject("alpha 0.5", "r", 0.5), Subject("alpha 1", "r", 1.0))
    items = {
        "base": one.items["base"],
        **dict.fromkeys(("alpha 0.5", "alpha 1"), one.items["tuned"]),
    }
    run = saved(tmp_path / "run", replace(one, models=models, items=items))
    seen = reported(run, model="alpha 0.5")
    assert seen.text.count("along the dial</title>") == 2
    assert seen.words.index("alpha 0.5 gained") < seen.words.index("Outcome")
    with pytest.raises(ConfigError, match="model='tuned' is not known"):
        reported(run, model="tuned")


def test_a_builder_that_lets_nothing_through():
    assert tag("p", "<b>", tag("b", 1, None, ["x", ["&"]])) == "<p>&lt;b&gt;<b>1x&amp;</b></p>"
    assert tag("td", class_='"><script>', open=False) == (
        '<td class="&quot;&gt;&lt;script&gt;"></td>'
    )
    for wrong in (
        lambda: tag("script", "x"),
        lambda: tag("p", onclick="x"),
        lambda: tag("p", style="x"),
        lambda: tag("a", href="javascript:x"),
        lambda: tag("a", href="#x\n"),
        lambda: tag("a", href="https://x"),
    ):
        with pytest.raises(ValueError, match="a page"):
            wrong()
    with pytest.raises(TypeError):
        tag("p", object())
    assert isinstance(tag("p"), Piece) and not isinstance(tag("p") + "", Piece)
    assert cut("abc", 2) == "ab … (3 characters in all)" and cut("abc", 3) == "abc"


def test_ticks_and_axes():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(-7, 12) == [-5, 0, 5, 10]
    assert ticks(2.0001, 2.0002)[0] >= 2.0001 and len(ticks(2.0001, 2.0002)) > 1
    assert axis_for([math.nan, math.inf], "x").low < axis_for([], "x").high
    same = axis_for([3.0, 3.0], "x")
    assert same.low < 3 < same.high and 0 < same.share(3) < 1 and same.share(math.inf) == 1
    for low, high in ((-1e9, 1e9), (1e-9, 2e-9), (0.1, 0.7), (99, 101)):
        assert 2 <= len(ticks(low, high)) <= 8
    assert (
        ticks(1.9, 4.1, whole=True) == [2, 3, 4] and axis_for([2, 4], "", whole=True).ticks[1] == 3
    )


def test_the_name_of_an_axis_has_room_beside_its_longest_number():
    lefts = [
        Plot(Axis(0, 1, "x"), Axis(low, low + 0.004, "y"), "t").at(0, 0)[0] for low in (0, 0.9)
    ]
    drawn = Plot(Axis(0, 1, "x"), Axis(1e6, 1e6 + 0.4, "y"), "t")
    assert drawn.at(0, 0)[0] >= 25 + 7 * max(len(f"{v:g}") for v in drawn.y.ticks)
    assert lefts[0] >= lefts[1] >= 25 + 7 * len("0.901")


def test_a_plot_draws_points_where_they_are():
    plot = Plot(axis_for([0, 10], "x"), axis_for([0, 1], "y"), "title")
    x, y = plot.at(10, 1)
    assert x > plot.at(0, 0)[0] and y < plot.at(0, 0)[1]
    plot.point(Interval(5, 4, 6), Interval(0.5, 0.5, 0.5), 1, "here")
    plot.point(Interval(5, 4, 6), Interval(math.nan, 0, 1), 1, "nowhere")
    plot.line([(0, 0), (1, math.nan), (2, 1), (3, 1)], 0)
    drawn = plot.drawn()
    assert drawn.count("<circle") == 1 and "nowhere" not in drawn and drawn.count("<polyline") == 2
    assert drawn.count('class="whisker s1"') == 1
    infinite = bar(Interval(0.1, -math.inf, math.inf), 0.5, "open")
    assert 'width="200"' in infinite and "inf" not in infinite and "nan" not in infinite


def test_the_newest_texts_of_a_run_are_shown(tmp_path):
    run = saved(tmp_path / "run", two_benchmarks())
    row = {"row": 0, "prompt": "2 + 2?", "reference": "4", "base": "22", "tuned": "four"}
    for step, word in ((0, "old"), (9, "older"), (10, "newest")):
        folder = run / "generation" / f"step-{step}"
        folder.mkdir(parents=True)
        rows = [row | {"tuned": f"{word} text"}, {"other": 1}, [], row | {"tuned": 4}]
        (folder / "maths.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    seen = reported(run)
    assert "maths, step-10: 1 texts" in seen.words
    assert "newest text" in seen.words and "older text" not in seen.words
    assert "Rows of run/generation with other fields, not shown: 3." in seen.words


def test_secrets_stay_at_home(tmp_path):
    command = (
        "controlllm eval a://me:word1@host/run --load.token word2 --load.storage_options "
        "'{sas: word3}' --api_key=word4 --load.tokenizer harmless"
    )
    one = two_benchmarks(provenance={"command": command, "site": "http://x/y?sig=word5"})
    models = (one.models[0], replace(one.models[1], name="https://me:word6@host/m"))
    run = saved(tmp_path / "run", replace(one, models=models))
    settings = "data: {plugin: harmless}\nload: {token: word7, storage_options: {sas: word8}}\n"
    (run / "config.yaml").write_text(settings)
    seen = report_page(read_runs([run]))
    assert re.findall(r"word\d", seen) == [] and seen.count("harmless") == 2
    assert "--load.token &#x27;&lt;redacted&gt;&#x27;" in seen
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_runs([run])


def guessing(**more):
    """gsm8k, of which neither model has one right, though the right answers became likelier."""
    sides = tuple(
        tuple(
            item("gsm8k", doc, strict=0.0, bits_per_byte=bits + doc % 5 / 10) for doc in range(50)
        )
        for bits in (2.0, 0.93)
    )
    return evaluation(sides, **more)


def test_the_reading_that_decided_is_named(tmp_path):
    (change,) = compare_models(guessing(), "tuned")
    assert (change.outcome, change.decided_by) == ("gained", "bits_per_byte")
    runs = [saved(tmp_path / name, guessing()) for name in ("a", "b")]
    seen = reported(*runs)
    assert "a · tuned gained on gsm8k (bits per byte −1.070)." in seen.words
    (table,) = [t for t in seen.tables if t[0] == ["benchmark", "a · tuned", "b · tuned"]]
    assert table[1][1] == "gained bits per byte −1.070"


def test_one_name_in_two_suites_is_told_apart(tmp_path):
    both = (guessing(suite="s"), evaluation(rights(150, 70), suite="t"))
    seen = reported(*(saved(tmp_path / name, *both) for name in ("a", "b")))
    assert "gained on gsm8k of suite s (" in seen.words
    assert "lost knowledge on gsm8k of suite t (strict −26.7 points)" in seen.words
    (table,) = [t for t in seen.tables if t[0] == ["benchmark", "a · tuned", "b · tuned"]]
    assert [row[0] for row in table[1:]] == ["gsm8k of suite s", "gsm8k of suite t"]


def test_answers_from_the_store_have_no_cost(tmp_path):
    one = guessing()
    models = (one.models[0], replace(one.models[1], seconds=12.34))
    seen = reported(saved(tmp_path / "run", replace(one, models=models)))
    (table,) = [table for table in seen.tables if table[0][-1] == "seconds"]
    assert [row[-1] for row in table[1:]] == ["answers from the store", "12.3"]


def test_a_run_that_was_asked_in_training_only_says_so(tmp_path):
    run = tmp_path / "run"
    for step in (2, 10):
        guessing().save(run / "benchmarks" / f"step-{step}" / "s")
    (run / "benchmarks" / "step-11").mkdir()
    seen = reported(run)
    assert "evaluated in training only" in seen.words
    assert str(run / "benchmarks" / "step-10") in seen.words
    assert "in training only" not in reported(saved(run, guessing())).words
    assert "in training only" not in reported(run / "benchmarks" / "step-2").words
