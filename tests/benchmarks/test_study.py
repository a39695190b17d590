"""The study runner: what is chosen is not told, what is done is not done again."""

import gzip
import json
from pathlib import Path

import pytest
from benchmarks.study.cells import AS_TRAINED, Bench, within
from benchmarks.study.plan import Arm, Study, read_study
from benchmarks.study.tables import draw, read_results, tables, told
from benchmarks.study.texts import write_shift

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
    assert within([0.5, 1.0], [0.01, 0.03], 0.02) == pytest.approx(0.75)
    assert within([0.5, 1.0], [0.01, 0.02], 0.05) == 1.0
    assert within([0.5, 1.0], [0.04, 0.01], 0.02) == pytest.approx(0.25)


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
        small(arms={"full": Arm(), "again": Arm(trained_as="full", rates=[0.5])})
    path = tmp_path / "study.yaml"
    path.write_text("base: demo\nshifts: [gsm8k]\narms: {full: {rate: [1e-3]}}\n")
    with pytest.raises(ConfigError, match="rates"):
        read_study(path)


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
