"""The pages of docs/extending run as they stand (those of data do in tests/data)."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from controlllm import ExpansionConfig, collapse, expand
from controlllm.checkpoint import FORMS, export, load_model
from controlllm.cli import main
from controlllm.common.registry import Registry
from controlllm.evaluate.texts import EXTRACTORS, METRICS
from controlllm.expansion import DIVERGENCES, INTERPOLATORS
from controlllm.probe import PROBES
from controlllm.train import LOGGERS, LOSS_TYPES, SCHEDULES, RunConfig, train

BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
REGISTRIES: list[Registry[Any]] = [
    DIVERGENCES,
    EXTRACTORS,
    FORMS,
    INTERPOLATORS,
    LOGGERS,
    LOSS_TYPES,
    METRICS,
    PROBES,
    SCHEDULES,
]


@pytest.fixture(autouse=True)
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page registers is known in its test only."""
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_things", dict(registry._things))


@pytest.fixture
def run_page(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """`run_page(name)`: runs the Python of a page; what its last block leaves behind.

    Each block runs as a file of its own does: it knows of the others only what it imports.
    """
    monkeypatch.syspath_prepend(tmp_path)

    def run(name: str) -> dict[str, Any]:
        text = (repository / "docs" / "extending" / f"{name}.md").read_text("utf-8")
        blocks = BLOCK.findall(text)
        assert blocks
        known = [(registry, dict(registry._things)) for registry in REGISTRIES]
        names: dict[str, Any] = {}
        for block in blocks:
            for registry, things in known:
                monkeypatch.setattr(registry, "_things", dict(things))
            if file := re.match(r"# (\w+\.py)\n", block):
                (tmp_path / file[1]).write_text(block)
            names = {"__name__": "__main__"}
            exec(compile(block, f"{name}.md", "exec"), names)
        return names

    return run


@pytest.fixture
def history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pico_llama: Any, pico_tokenizer: Any
) -> Callable[[], list[dict[str, float]]]:
    """`my-run.yaml` lies in the working folder; `history()`: the metrics of its run."""
    monkeypatch.chdir(tmp_path)
    pico_llama().save_pretrained("base")
    pico_tokenizer.save_pretrained("base")
    Path("text.txt").write_text("the cat sat on the mat. " * 30)
    Path("heldout.txt").write_text("the dog lay by the fire. " * 3)
    run = {
        "model": {"model_name_or_path": "base", "device": "cpu"},
        "expansion": {"num_blocks": 1},
        "data": {
            "train": [{"path": "text.txt"}],
            "learn": [{"path": "heldout.txt", "name": "new"}],
            "max_length": 32,
        },
        "training": {
            "output_dir": "run",
            "max_steps": 8,
            "learning_rate": 1e-2,
            "min_lr_rate": 0.1,
            "warmup_steps": 2,
            "per_device_train_batch_size": 1,
            "eval_steps": 1,
        },
        "logging": {"logging_steps": 1, "report_to": ["jsonl"]},
    }
    Path("my-run.yaml").write_text(yaml.safe_dump(run))
    return lambda: [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


def set_in_run_file(section: str, key: str, value: Any) -> None:
    values = yaml.safe_load(Path("my-run.yaml").read_text())
    values[section][key] = value
    Path("my-run.yaml").write_text(yaml.safe_dump(values))


def test_logger(run_page, history):
    set_in_run_file("logging", "report_to", ["jsonl", "slowest"])
    run_page("logger")
    key = "train/step_seconds"
    seconds = {row["step"]: row[key] for row in history() if key in row}
    step = max(seconds, key=lambda one: seconds[one])
    assert Path("run/slowest.txt").read_text() == f"step {step}: {seconds[step]:.3f} s\n"


def test_schedule(run_page, history, capsys):
    set_in_run_file("training", "lr_scheduler_type", "rex")
    run_page("schedule")
    shares = [100 * row["train/learning_rate"] for row in history() if "train/loss" in row]
    expected = [1 / 3, 2 / 3] + [
        0.1 + 0.9 * (1 - p) / (1 - p / 2) for p in (k / 6 for k in range(6))
    ]
    assert shares == pytest.approx(expected)
    said = (Path(__file__).parents[2] / "docs/extending/schedule.md").read_text()
    assert f"# {capsys.readouterr().out.splitlines()[-1]}" in said


def test_loss(run_page, history):
    """The first step is of an untrained model: nothing is known, and little is left out."""
    set_in_run_file("training", "loss_type", "focal")
    focal = run_page("loss")["focal"]
    first = next(row for row in history() if "train/loss" in row)
    assert 0.9 * math.log(259) < first["train/cross_entropy"] < 1.1 * math.log(259)
    logits = torch.tensor([[0.25, 0.75], [1.0, 0.0]]).log()
    assert focal(logits, torch.tensor([0, 0])).tolist() == pytest.approx([0.75**2, 0.0])


def test_metric(run_page, history, capsys):
    rows = [{"prompt": "a cat?", "completion": "on the mat"}] * 3
    Path("questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    page = (Path(__file__).parents[2] / "docs/extending/metric.md").read_text()
    given = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)[0])
    values = yaml.safe_load(Path("my-run.yaml").read_text())
    values["data"] |= {**given["data"], "max_length": 64}
    values["training"]["eval_steps"] = 4
    Path("my-run.yaml").write_text(yaml.safe_dump(values | {"evaluation": given["evaluation"]}))
    run_page("metric")
    curve = {row["step"]: row for row in history() if "generation/questions/rows" in row}
    assert sorted(curve) == [0, 4, 8]
    name = "generation/questions/relative_length"
    printed = capsys.readouterr().out.splitlines()
    assert printed == [*(f"{step} {row[name]}" for step, row in curve.items()), printed[-1]]
    assert f"# {printed[-1]}" in page
    samples = Path("run/generation/step-8/questions.jsonl").read_text().splitlines()
    lengths = sum(len(json.loads(line)["tuned"]) for line in samples)
    assert curve[8][name] == lengths / (3 * len("on the mat"))


def test_probe(run_page, history, capsys):
    train(RunConfig.from_yaml("my-run.yaml"))
    run_page("probe")
    said = (Path(__file__).parents[2] / "docs/extending/probe.md").read_text()
    assert f"# {capsys.readouterr().out.splitlines()[-1]}" in said
    assert "Sharpness" in Path("probe.html").read_text()


def test_form(run_page, history, capsys):
    train(RunConfig.from_yaml("my-run.yaml"))
    form = run_page("form")["form"]
    told = capsys.readouterr().out
    said = (Path(__file__).parents[2] / "docs/extending/form.md").read_text()
    assert f"# {told.splitlines()[-1]}" in said and "exported/npz: npz form" in told
    model, tokenizer = load_model("run")
    whole, half = (np.load(f"exported/{name}/weights.npz") for name in ("npz", "half"))
    for name, parameter in collapse(model).named_parameters():
        assert np.array_equal(whole[name], parameter.detach().numpy())
        assert np.array_equal(half[name], whole[name].astype("float16"))
    export(model, "exported/half", form, tokenizer, overwrite=True)
    assert main(["export", "run", "exported/full", "--form", "full"]) in (0, None)
    assert main(["export", "run", "exported/no", "--form", "npz", "--rank", "3"]) == 2
    assert "rank=3 would not be used" in capsys.readouterr().err


def test_callback(run_page, history):
    set_in_run_file("training", "learning_rate", 1e-30)  # so that nothing is learned
    assert run_page("callback")["result"].stopped_because == "patience"
    assert [row["mine/evaluations_since_best"] for row in history() if len(row) == 3] == [
        0,
        1,
        2,
        3,
    ]


def test_interpolator(run_page, pico_llama):
    run_page("interpolator")
    base, ids = pico_llama(), torch.arange(3, 11)[None]
    before = base(ids).logits
    model = expand(base, ExpansionConfig(interpolator="norm_gate"))
    assert torch.equal(model(ids).logits, before)
    assert all(alpha == 0.5 for alpha in model.alphas().values())


def test_divergence(run_page):
    run_page("divergence")
    x, p = torch.randn(2, 1, 3, 4)
    assert torch.equal(DIVERGENCES.get("l1")(p, p, x), torch.zeros(1, 3))
    assert torch.allclose(DIVERGENCES.get("l1")(p, p + 2, x), torch.full((1, 3), 2.0))


def test_task(run_page, capsys):
    run_page("task")
    interval, verdict, _ = capsys.readouterr().out.splitlines()
    assert interval.startswith("+0.2500 [") and verdict == "PASS"
