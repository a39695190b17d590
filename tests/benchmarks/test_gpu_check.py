"""`benchmarks/gpu/check.sh` as far as a CPU can run it: every part, tiny, and the runner."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.gpu import check, decoding, losses, marked, resuming, step
from benchmarks.gpu.goals import judged

DRY = argparse.Namespace(device="cpu", size="dry", dry=True)


def rows_of(part: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    part.run(DRY, found.append)
    return found


def test_steps_are_measured_and_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {name: step.WAYS[name] for name in ("full", "native", "native, Liger")}
    absent = ("no_such_package", {})
    monkeypatch.setattr(step, "WAYS", {**ways, "absent": absent})
    full, native, liger, missing = rows_of(step)
    assert liger["note"].startswith("left out: ")
    assert missing["note"] == "left out: no_such_package is not installed"
    for row in (full, native):
        assert row["step_seconds"] > 0 and row["peak_gib"] >= 0 and 0 < row["mfu"] < 1
    assert full["trained"] == full["parameters"] > native["trained"]
    assert native["planned_tflop"] < full["planned_tflop"]


def test_a_way_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (None, {"training": {"loss_chunk_size": -1}})
    monkeypatch.setattr(step, "WAYS", {"broken": broken})
    (row,) = rows_of(step)
    assert row["note"].startswith("failed: ConfigError: ") and "loss_chunk_size" in row["note"]


def test_what_the_plan_says_will_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step.Device, "total_gib", lambda self: 0.001)
    monkeypatch.setattr(step, "WAYS", {"full": (None, {})})
    (row,) = rows_of(step)
    assert row["note"] == "left out: the GPU has 0 GiB" and row["plan_gib"] > 0.001


def test_decoding_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "CASES", ("base", "{many}, alpha 0", "{many}"))
    rows = rows_of(decoding)
    assert [row["how"] for row in rows] == ["plain"] * 3 + ["graph"] * 3
    assert all("note" not in row for row in rows)
    for row in rows:  # Two of four blocks are beside a copy; alpha 0 reads no copy.
        expected = 1.0 if row["blocks"] != "2" else pytest.approx(1.41, abs=0.02)
        assert row["bytes_ratio"] == expected
        assert row["base_of_limit"] > 0 and row["expanded_tokens_per_second"] > 0


def test_losses_agree_with_float32() -> None:
    rows = {(row["way"], row["head"]): row for row in rows_of(losses)}
    assert {head for _, head in rows} == {"frozen", "trained"}
    for (way, head), row in rows.items():
        if way == "Liger":
            assert row["note"].startswith("left out: ")
        else:
            assert row["loss_error"] < 0.01 and row["gradient_error"] < 0.01, (way, head)


def test_a_run_that_died_goes_on_as_if_it_had_not() -> None:
    again, resumed = rows_of(resuming)
    torch.use_deterministic_algorithms(False)
    for row in (again, resumed):
        assert row["steps"] == resuming.STEPS and row["tensors"] > 10
        assert row["different"] == 0 and row["losses_equal"] is True


def test_every_marked_file_is_found(repository: Path) -> None:
    found = {path.relative_to(repository).as_posix() for path in marked.marked_files()}
    assert found >= {
        "tests/laws/test_gpu.py",
        "tests/train/test_gpu.py",
        "tests/train/test_liger_kernels.py",
        "tests/train/debugging/test_debugging.py",
    }


def test_outcomes_of_tests_become_rows() -> None:
    rows: list[dict[str, Any]] = []
    watch = marked.Watch(rows.append)

    def report(when: str, outcome: str, longrepr: Any = None) -> Any:
        return SimpleNamespace(
            nodeid="t", when=when, outcome=outcome, longrepr=longrepr, duration=1.0
        )

    watch.pytest_runtest_logreport(report("setup", "passed"))
    watch.pytest_runtest_logreport(report("call", "passed"))
    watch.pytest_runtest_logreport(report("setup", "skipped", ("f", 1, "Skipped: no flash_attn")))
    watch.pytest_runtest_logreport(report("call", "failed", "E  x\nf.py:1: AssertionError"))
    watch.pytest_collectreport(report("collect", "passed"))
    watch.pytest_collectreport(report("collect", "skipped", ("f", 1, "Skipped: no triton")))
    assert [row["outcome"] for row in rows] == ["passed", "skipped", "failed", "skipped"]
    assert [row.get("note") for row in rows][1:] == [
        "no flash_attn",
        "f.py:1: AssertionError",
        "no triton",
    ]


def way(name: str, **numbers: float) -> dict[str, Any]:
    usual = {"step_seconds": 1.0, "planned_tflop": 100.0, "mfu": 0.5}
    return {"way": name, "size": "1B", **usual, "peak_gib": 10.0, "plan_gib": 10.0, **numbers}


def test_goals_are_judged_by_the_numbers() -> None:
    results = {
        "step": [
            way("full", mfu=0.44, peak_gib=10.9),
            way("native", step_seconds=0.78, planned_tflop=75.0, peak_gib=8.9),
            {"way": "native, Liger", "size": "1B", "note": "left out"},
        ],
        "tests": [{"outcome": "passed"}, {"outcome": "skipped"}],
        "resume": [{"different": 0}, {"different": 3}],
    }
    found = {row["goal"]: row for row in judged(results, dry=False)}
    assert {goal: row["verdict"] for goal, row in found.items()} == {
        "MFU of full at 1B": "FAIL",
        "MFU of native at 1B": "pass",
        # 0.78 of the time for 0.75 of the operations.
        "expanded step, of full tuning's, over its share of FLOPs by": "FAIL",
        "memory of full, off the plan by": "pass",
        "memory of native, off the plan by": "FAIL",
        "marked tests that failed": "pass",
        "tensors that differ after resuming": "FAIL",
    }
    over = found["expanded step, of full tuning's, over its share of FLOPs by"]["measured"]
    assert over == pytest.approx(0.04)
    assert {row["verdict"] for row in judged(results, dry=True)} == {"not judged"}


def test_what_was_not_measured_is_not_judged() -> None:
    assert judged({}, dry=False) == []
    skipped = {"tests": [{"outcome": "skipped"}], "resume": [{"different": 2}, {"different": 2}]}
    assert [row["verdict"] for row in judged(skipped, dry=False)] == ["not judged"] * 2
    other = judged({"step": [{**way("full"), "size": "0.5B"}]}, dry=False)
    assert [row["goal"] for row in other] == ["memory of full, off the plan by"]


def test_parts_end_by_their_limit_and_by_the_clock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tenth of a second is too short for any part, and what would not fit is not begun."""
    words = ["--dry", "--parts", "loss", "resume", "--output", str(tmp_path), "--seconds"]
    assert check.main([*words, "10"]) == 1
    record = json.loads((tmp_path / "gpu-check.json").read_text())
    assert record["rows"] == {} and record["goals"] == []
    assert all(part["ended"].startswith("skipped: ") for part in record["parts"].values())
    options = argparse.Namespace(dry=True, size="dry")
    with (tmp_path / "log").open("w") as log:
        ended, rows = check.in_time("loss", options, 0.1, log)
    assert ended["ended"].startswith("ended by its limit") and rows == []
    assert "and it needs 25" in capsys.readouterr().out


def test_a_part_that_fails_says_so(tmp_path: Path) -> None:
    options = argparse.Namespace(dry=False, size="no such size")
    with (tmp_path / "log").open("w") as log:
        ended, rows = check.in_time("loss", options, 100, log)
    assert ended["ended"] == "failed with exit code 2; see gpu-check.log" and rows == []
    assert "no such size" in (tmp_path / "log").read_text()


def test_rows_are_kept_as_they_come(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert check.whole_rows(tmp_path / "rows") == [{"a": 1}, {"a": 2}]
    assert check.whole_rows(tmp_path / "none") == []


def test_a_part_in_its_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dry", "--parts", "loss", "--seconds", "3000", "--output", str(tmp_path)]
    assert check.main(words) == 0
    record = json.loads((tmp_path / "gpu-check.json").read_text())
    assert record["parts"]["loss"]["ended"] == "done" and len(record["rows"]["loss"]) == 8
    assert record["machine"]["python"] and "flash_attn" in record["machine"]["missing"]
    text = (tmp_path / "gpu-check.md").read_text()
    assert text.startswith("A dry run: the numbers say nothing.") and "## loss" in text
    assert "| all logits |" in text and text.strip() in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_a_dry_run_begins(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="torch sees no GPU here; --dry"):
        check.main(["--output", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_dry_run(repository: Path, tmp_path: Path) -> None:
    """As the page says, from anywhere; nothing fails that has what it needs."""
    command = [str(repository / "benchmarks/gpu/check.sh"), "--dry", "--seconds", "1400"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "gpu-check.json").read_text())
    assert set(record["parts"]) == set(record["rows"]) == set(check.PARTS)
    notes = [row.get("note", "") for rows in record["rows"].values() for row in rows]
    assert [note for note in notes if note.startswith("failed")] == []
    outcomes = [row["outcome"] for row in record["rows"]["tests"]]
    assert "passed" in outcomes and "failed" not in outcomes
    assert [row["way"] for row in record["rows"]["step"]] == list(step.WAYS)
