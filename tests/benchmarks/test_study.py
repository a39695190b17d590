"""The study runner: what is chosen is not told, what is done is not done again."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.study.__main__ import main
from benchmarks.study.cells import Bench
from benchmarks.study.measuring import AS_TRAINED, within
from benchmarks.study.plan import Arm, Study, read_study
from benchmarks.study.records import read_results, write_numbers
from benchmarks.study.tables import draw, page_tables, tables
from benchmarks.study.texts import write_shift
from benchmarks.study.told import told
from benchmarks.study.trial import Trial

from controlllm.common.errors import ConfigError

STUDIES = Path("benchmarks/study/studies")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up texts in the places of the real ones."""
    folder = tmp_path_factory.mktemp("data")
    lines = [f"Line {i}: the cat number {i * i} sat on mat {i % 7}.\n" for i in range(3000)]
    rows = [{"question": f"What is {i}+{i}?", "answer": f"It is {2 * i}."} for i in range(600)]
    told_rows = "\n".join(json.dumps(row | {"answer": "told"}) for row in rows[:50])
    texts = {
        "text/tinyshakespeare/input.txt": "".join(lines) * 3,
        "text/tinystories_excerpt/tinystories.txt": "".join(lines[::-1]),
        "sft/gsm8k/test.jsonl": told_rows,
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    packed = gzip.compress("\n".join(map(json.dumps, rows)).encode())
    (folder / "sft/gsm8k/train.jsonl.gz").write_bytes(packed)
    return folder


def small(**values: object) -> Study:
    arms = {
        "full": Arm(run={"method": "full"}, rates=[1e-3, 3e-3]),
        "paper": Arm(run={"preset": "paper", "expansion": {"num_blocks": 2}}),
    }
    sizes = {"steps": 2, "length": 32, "chosen_rows": 8, "told_rows": 8, "own_sequences": 8}
    kept = {"kept": ["tinystories"], "seeds": [0]}
    return Study(**({"base": "demo", "shifts": ["gsm8k"], "arms": arms} | sizes | kept | values))


def test_the_largest_dial_before_the_first_that_costs_too_much() -> None:
    assert within([0.5, 1.0], [0.01, 0.04], 0.0225) == pytest.approx(0.75)
    assert within([0.5, 1.0], [0.04, 0.01], 0.01) == pytest.approx(0.25)  # before the first
    assert within([0.5, 1.0], [-1e-9, 0.01], 0.0025) == pytest.approx(0.75)
    assert within([0.5, 1.0], [0.01, 0.02], 0.05) == 1.0


@pytest.mark.parametrize("chat", [True, False])
def test_parts_of_a_shift_share_no_row(data: Path, tmp_path: Path, chat: bool) -> None:
    files = write_shift("gsm8k", data, tmp_path, chat, 2000)
    lines = {part: Path(path).read_text().splitlines() for part, path in files.items()}
    assert lines["train"] and len(Path(files["train"]).read_text()) < 20_000
    if chat:
        assert not set(lines["train"]) & set(lines["chosen"])
        assert json.loads(lines["told"][0])["messages"][1]["content"] == "told"
    assert "told" in "".join(lines["told"]) and "told" not in "".join(lines["train"])


def test_a_study_runs_and_is_not_done_again(data: Path, tmp_path: Path) -> None:
    bench = Bench(small(), data, tmp_path)
    assert [bench.work(cell) for cell in bench.study.cells()] == [True] * 3
    assert not any(Bench(small(), data, tmp_path).work(cell) for cell in bench.study.cells())
    results = read_results(bench.study, tmp_path)
    settings = results[-1]["settings"]
    assert set(settings) == {AS_TRAINED, "KL 0.01", "KL 0.03", "KL 0.1"}
    assert set(settings[AS_TRAINED]["sets"]) == {
        "chosen new", "chosen own", "own", "new", "tinystories",
    }  # fmt: skip
    chosen, other = (settings[AS_TRAINED]["sets"][name] for name in ("chosen own", "own"))
    assert chosen["base"] != other["base"]  # other sequences
    assert all(setting["sets"]["own"]["kl"] >= 0 for setting in settings.values())
    table = tables(bench.study, results)
    assert "gsm8k, KL 0.01" in table and "paper" in table
    draw(bench.study, results, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000
    write_numbers(results, tmp_path / "numbers.csv")
    with (tmp_path / "numbers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results) * (1 + len(bench.study.budgets))
    told_loss = results[0]["settings"][AS_TRAINED]["sets"]["new"]["loss"]
    assert rows[0]["setting"] == AS_TRAINED and rows[0]["dial"] == ""
    assert float(rows[0]["new loss"]) == pytest.approx(told_loss, rel=1e-4)


def test_the_rate_is_chosen_on_the_chosen_text(data: Path, tmp_path: Path) -> None:
    study = small()
    numbers = {1e-3: (2.0, 1.0), 3e-3: (1.0, 2.0)}  # chosen, told
    results = [
        {
            "arm": "full", "shift": "gsm8k", "rate": rate, "seed": 0,
            "settings": {AS_TRAINED: {"sets": {"chosen new": {"loss": c}, "new": {"loss": t}}}},
        }
        for rate, (c, t) in numbers.items()
    ]  # fmt: skip
    (one,) = told(study, results, "gsm8k", AS_TRAINED)
    assert (one.rate, one.mean("new")) == (3e-3, 2.0)


def test_what_a_study_cannot_mean_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gsm8k"):
        small(shifts=["gsm9k"])
    with pytest.raises(ConfigError, match="no arm with runs of its own"):
        small(arms={"full": Arm(), "b": Arm(trained_as="full", trial="merged", rates=[0.5])})
    path = tmp_path / "study.yaml"
    path.write_text("base: demo\nshifts: [gsm8k]\narms: {full: {rate: [1e-3]}}\n")
    with pytest.raises(ConfigError, match="rates"):
        read_study(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [0, 0]}, "twice"),
        ({"steps": 0}, "study.steps=0"),
        ({"own_sequences": 4}, "study.own_sequences=4"),
        ({"dials": []}, "dials is empty"),
    ],
)
def test_numbers_that_mean_nothing_are_said_before_a_run(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small(**values)


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"..": Arm()}, "cannot name a folder"),
        ({"": Arm()}, "cannot name a folder"),
        ({"a b": Arm(), "A_b": Arm()}, "would share a folder"),
        ({"a": Arm(rates=[1e-3, 1.0000001e-3])}, "twice"),
        ({"a": Arm(rates=[-1e-3])}, "arms.a.rates=-0.001"),
        ({"a": Arm(trial="merjed")}, "'merged'"),
        ({"a": Arm(settings={"read": 4})}, "a trial's"),
        ({"a": Arm(), "b": Arm(trained_as="a")}, "give a trial"),
    ],
)
def test_arms_that_cannot_be_are_said_before_a_run(arms: dict[str, Arm], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small(arms=arms, yardstick=next(iter(arms)))


def test_each_arm_is_looked_at_before_the_first_is_run(data: Path, tmp_path: Path) -> None:
    for bad, said in (
        (Arm(run={"metod": "full"}), "metod"),
        (Arm(trial="finch", settings={"mosst": 2}), "mosst"),
    ):
        bench = Bench(small(arms={"full": Arm(run={"method": "full"}), "b": bad}), data, tmp_path)
        with pytest.raises(ConfigError, match=f"arms.b: .*{said}"):
            bench.check(bench.study.cells())


@pytest.mark.parametrize("preset", ["retain", "sidecar"])
def test_rehearsal_of_a_preset_has_the_length_of_the_study(
    data: Path, tmp_path: Path, preset: str
) -> None:
    study = small(arms={"full": Arm(run={"preset": preset})})
    run = Bench(study, data, tmp_path).run_config(next(study.cells()), Trial())
    assert (run.rehearsal.length, run.rehearsal.cache_dir) == (32, str(tmp_path / "rehearsal"))


def test_what_is_measured_again_is_done_after_what_it_measures() -> None:
    arms = {"merged": Arm(trained_as="full", trial="merged"), "full": Arm()}
    study = small(arms=arms, seeds=[0, 1])
    assert [(c.name, c.seed) for c in study.cells()] == [
        ("full", 0), ("merged", 0), ("full", 1), ("merged", 1),
    ]  # fmt: skip


def test_results_of_another_study_are_not_taken_for_its_own(data: Path, tmp_path: Path) -> None:
    arms = {"full": Arm(run={"method": "full"})}
    bench = Bench(small(arms=arms), data, tmp_path)
    (cell,) = bench.study.cells()
    assert bench.work(cell)
    for values, said in (
        ({"steps": 3}, "steps was 2, is 3"),
        ({"own_sequences": 9}, "own_sequences was 8, is 9"),
        ({"budgets": [0.02]}, "budgets was"),
        ({"arms": {"full": Arm(run={"method": "lora"})}}, "arm was"),
    ):
        other = small(**({"arms": arms} | values))
        with pytest.raises(ConfigError, match=said):
            read_results(other, tmp_path)
        with pytest.raises(ConfigError, match=said):
            Bench(other, data, tmp_path).work(next(other.cells()))
    assert read_results(small(arms=arms | {"more": Arm()}, seeds=[0, 1]), tmp_path)


def test_what_is_told_otherwise_is_told_again_of_the_same_run(
    shared_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval (the extra `eval`)")
    arms = {
        "full": Arm(run={"method": "full"}, rates=[1e-2]),
        "shira": Arm(run={"method": "lora"}, trial="peft_type", settings={"type": "SHIRA", "r": 2}),
        "paper": Arm(run={"preset": "paper", "expansion": {"num_blocks": 2}}, rates=[1e-2]),
        "merged": Arm(trained_as="paper", trial="merged", rates=[1e-2]),
    }
    same: dict[str, Any] = {
        "arms": arms, "dtype": "bfloat16", "common": {"training": {"bf16": True}},
        "train_characters": 9_000, "questions": 3, "budgets": [0.01],
    }  # fmt: skip
    study = small(**same, benchmarks=["arc_easy"])
    bench = Bench(study, shared_data, tmp_path)
    assert all(bench.work(cell) for cell in study.cells())
    before = read_results(study, tmp_path)
    assert [one["items"] is None for one in before] == [False, False, False, True]

    for values, items in (
        ({"told_rows": 16, "told_sequences": 12, "benchmarks": ["arc_easy"]}, {"arc_easy"}),
        (
            {"kept": ["wikipedia"], "kept_rows": 10, "benchmarks": ["arc_easy", "piqa"]},
            {"arc_easy", "piqa"},
        ),
    ):
        more = small(**(same | values))
        assert not read_results(more, tmp_path)
        again = Bench(more, shared_data, tmp_path)
        assert all(again.work(cell) for cell in more.cells())
        after = read_results(more, tmp_path)
        for old, new in zip(before, after, strict=True):
            for kept in ("arm", "seconds", "trained_parameters"):
                assert old[kept] == new[kept]
            assert new["trained"] == old["about"]
            _same_run_told_again(old["settings"], new["settings"], more)
            if old["items"] is None:  # a merged model is no model of transformers
                assert new["items"] is None
                continue
            assert set(new["items"][AS_TRAINED]) == items
            assert new["items"]["KL 0.01"]["arc_easy"] == old["items"]["KL 0.01"]["arc_easy"]


def _same_run_told_again(old: dict[str, Any], new: dict[str, Any], study: Study) -> None:
    assert set(old) == set(new)
    for label, setting in old.items():
        assert new[label]["dial"] == setting["dial"]
        told_now = new[label]["sets"]
        assert set(told_now) == {"chosen new", "chosen own", "own", "new", *study.kept}
        for name in ("own", "new", *study.kept):
            rows = {"own": study.told_sequences, "new": study.told_rows}.get(name, study.kept_rows)
            assert len(told_now[name]["documents"]) == rows
        then, now = (sets["new"]["documents"] for sets in (setting["sets"], told_now))
        assert now[: len(then)] == pytest.approx(np.array(then), rel=1e-5)
        if study.told_sequences == study.own_sequences:  # else these are other sequences
            assert told_now["own"] == setting["sets"]["own"]
        for name in ("chosen new", "chosen own"):
            assert told_now[name] == setting["sets"][name]


def test_texts_that_others_are_trained_on_are_not_taken(data: Path, tmp_path: Path) -> None:
    write_shift("shakespeare", data, tmp_path, False, 2000)
    write_shift("shakespeare", data, tmp_path, False, 2000)
    with pytest.raises(ConfigError, match="another train_characters"):
        write_shift("shakespeare", data, tmp_path, False, 3000)


def test_no_share_is_told_of_a_yardstick_that_learned_nothing(tmp_path: Path) -> None:
    study = small(budgets=[0.01])
    number = {"base": 1.0, "loss": 1.0, "kl": 0.0}
    names = ("chosen new", "new", "own", "tinystories")
    setting = {"dial": 0.5, "sets": dict.fromkeys(names, number)}
    result = {
        "arm": "full", "shift": "gsm8k", "rate": 1e-3, "seed": 0, "trained_parameters": 1,
        "seconds": None, "settings": dict.fromkeys((AS_TRAINED, "KL 0.01"), setting),
    }  # fmt: skip
    assert "| 0.50 | 1.000 |      - |" in tables(study, [result])
    draw(study, [result], tmp_path / "study.png")
    assert "no cell of full" in tables(study, [result | {"arm": "paper"}])


def test_names_on_the_command_line_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["study", str(STUDIES / "losses.yaml"), "--output", str(tmp_path)]
    for more, said in (
        (["--arms", "retian"], "'retain'"),
        (["--seeds", "7"], "--seeds='7'"),
        (["--data", str(tmp_path / "none")], "no such folder"),
        (["--table", "--arms", "retian"], "'retain'"),
    ):
        monkeypatch.setattr("sys.argv", line + more)
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 1 and said in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_study_can_be_read(path: Path) -> None:
    assert list(read_study(path).cells())


def test_a_switch_is_the_base_at_the_start_and_the_better_model_after(
    data: Path, tmp_path: Path
) -> None:
    arms = {
        "full": Arm(run={"method": "full"}, rates=[3e-3]),
        "switch": Arm(trained_as="full", trial="switch", settings={"read": 4}, rates=[3e-3]),
        "oracle": Arm(trained_as="full", trial="switch", settings={"read": None}, rates=[3e-3]),
    }
    bench = Bench(small(arms=arms, steps=6), data, tmp_path)
    assert all(bench.work(cell) for cell in bench.study.cells())
    full, switch, oracle = read_results(bench.study, tmp_path)
    sets = [one["settings"][AS_TRAINED]["sets"] for one in (full, switch, oracle)]
    for name in ("new", "tinystories"):
        tuned, switched, best = (one[name]["loss"] for one in sets)
        assert best <= min(tuned, sets[0][name]["base"]) + 1e-6
        assert switched >= best - 1e-6
    assert sets[1]["new"]["loss"] < sets[1]["new"]["base"]  # it does switch


def test_a_merged_model_is_folded_anew_at_each_setting(data: Path, tmp_path: Path) -> None:
    run = {"method": "control", "expansion": {"num_blocks": 2, "divergence": "none"}}
    arms = {
        "control": Arm(run=run, rates=[1e-2]),
        "merged": Arm(trained_as="control", trial="merged", rates=[1e-2]),
    }
    study = small(arms=arms, steps=6, yardstick="control", dials=[0.5, 1.0])
    bench = Bench(study, data, tmp_path)
    assert all(bench.work(cell) for cell in study.cells())
    beside, merged = (one["settings"] for one in read_results(study, tmp_path))
    for label in (AS_TRAINED, "KL 0.01"):
        one, other = (at[label]["sets"]["new"] for at in (beside, merged))
        assert one["base"] == other["base"] and one["loss"] != other["loss"]
        assert abs(one["loss"] - other["loss"]) < 0.1 * one["base"]  # it is near, after six steps


@pytest.mark.parametrize(
    ("name", "expansion", "settings"),
    [
        ("anchor", {}, {"weight": 0.1}),
        ("block_scale", {"divergence": "mse"}, {}),
        ("finch", {}, {}),
        ("gate", {"interpolator": "study_gate"}, {}),
        ("mlp_copies", {}, {}),
        ("rehearsed_text", {}, {"lengths": [8, 32]}),
        ("repair", {}, {"part": 0.5}),
    ],
)
def test_cells_with_a_trial_are_trained_and_told(
    data: Path, tmp_path: Path, name: str, expansion: dict[str, Any], settings: dict[str, Any]
) -> None:
    run = {"preset": "retain", "expansion": {"num_blocks": 2} | expansion}
    run["rehearsal"] = {"num_sequences": 4}
    arms = {name: Arm(run=run, trial=name, settings=settings)}
    study = small(arms=arms, yardstick=name)
    bench = Bench(study, data, tmp_path)
    assert all(bench.work(cell) for cell in study.cells())
    (result,) = read_results(study, tmp_path)
    assert result["settings"][AS_TRAINED]["sets"]["new"]["kl"] > 0


@pytest.mark.parametrize("settings", [{"type": "SHIRA", "r": 2}, {"type": "OSF"}])
def test_other_adapters_of_peft_are_trained_and_merged(
    data: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    arm = Arm(run={"method": "lora"}, trial="peft_type", settings=settings, rates=[1e-2])
    study = small(arms={"other": arm}, yardstick="other")
    bench = Bench(study, data, tmp_path)
    assert all(bench.work(cell) for cell in study.cells())
    (result,) = read_results(study, tmp_path)
    assert result["settings"][AS_TRAINED]["sets"]["new"]["kl"] > 1e-5
    dials = [result["settings"][f"KL {budget:g}"]["dial"] for budget in study.budgets]
    assert all(dials)


def test_base_and_cells_are_asked_the_same_questions(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval (the extra `eval`)")
    arms = {
        "full": Arm(run={"method": "full"}, rates=[1e-2]),
        "switch": Arm(trained_as="full", trial="switch", rates=[1e-2], settings={"read": 4}),
    }
    asks = {"benchmarks": ["arc_easy"], "questions": 5, "seeds": [0, 1], "train_characters": 9_000}
    study = small(arms=arms, **asks)
    bench = Bench(study, shared_data, tmp_path)
    bench.check(study.cells())
    assert all(bench.work(cell) for cell in study.cells())
    results = read_results(study, tmp_path)
    trained = [r["items"] for r in results if r["arm"] == "full"]
    assert [r["items"] for r in results if r["arm"] == "switch"] == [None, None]
    for items in trained:
        base, tuned, first, last = zip(*items[AS_TRAINED]["arc_easy"], strict=True)
        assert len(base) == 5 and first != last and set(base + tuned) <= {0, 1}
        assert [one[2] for one in items["KL 0.01"]["arc_easy"]] == list(first)
    assert trained[0] != trained[1]
    assert "| full | arc_easy  |   5 |" in tables(study, results)
    assert page_tables(study, results).startswith("**gsm8k** (base ")
    more = small(arms=arms, **asks | {"benchmarks": ["arc_easy", "piqa"]})
    assert not read_results(more, tmp_path)  # it is told again
    with pytest.raises(ConfigError, match="'arc_easy'"):
        small(benchmarks=["arc_esy"])


def test_what_was_trained_in_bfloat16_is_measured_in_it_or_in_float32(
    shared_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval (the extra `eval`)")
    run = {"preset": "paper", "expansion": {"num_blocks": 2}}
    study = small(
        dtype="bfloat16",
        common={"training": {"bf16": True}},
        arms={
            "full": Arm(run={"method": "full"}, rates=[1e-2]),
            "paper": Arm(run=run, rates=[1e-2]),
            "exact": Arm(trained_as="full", trial="in_float32", rates=[1e-2]),
        },
        benchmarks=["arc_easy"],
        questions=3,
        train_characters=9_000,
    )
    bench = Bench(study, shared_data, tmp_path)
    assert all(bench.work(cell) for cell in study.cells())
    found = {result["arm"]: result for result in read_results(study, tmp_path)}
    for result in found.values():
        assert len(result["items"][AS_TRAINED]["arc_easy"]) == 3
        assert result["settings"][AS_TRAINED]["sets"]["new"]["kl"] > 0
    bases = {arm: at["settings"][AS_TRAINED]["sets"]["new"]["base"] for arm, at in found.items()}
    assert bases["exact"] != bases["full"] == bases["paper"]
    assert bases["exact"] == pytest.approx(bases["full"], rel=0.02)


def test_a_dial_is_measured_where_it_is_set(data: Path, tmp_path: Path) -> None:
    study = small(dials=[0.5, 1.0], arms={"full": Arm(run={"method": "full"}, rates=[1e-2])})
    bench = Bench(study, data, tmp_path)
    assert all(bench.work(cell) for cell in study.cells())
    (result,) = read_results(study, tmp_path)
    for budget in study.budgets:
        at = result["settings"][f"KL {budget:g}"]
        assert 0.95 * budget <= at["sets"]["chosen own"]["kl"] <= budget or at["dial"] == 1.0
