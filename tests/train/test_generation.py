"""Texts in training: the curves, their base, the bounds, and what is refused before it is slow."""

import json
import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.train.test_loggers import read_tensorboard

from controlllm.common.errors import ConfigError, DataError
from controlllm.data import Question
from controlllm.evaluate.texts import (
    EXTRACTORS,
    METRICS,
    register_extractor,
    register_metric,
)
from controlllm.train import LOGGERS, Callback, train
from controlllm.train.config.config_io import merge
from controlllm.train.observe.answers import Answer, Pace
from controlllm.train.observe.generation import GenerationMeter
from controlllm.train.record import evaluation_time
from controlllm.train.record import generation as hook
from controlllm.train.record.evaluation_time import EvaluationTime
from controlllm.train.setup.generation import make_generation_meter
from controlllm.train.setup.ready import set_up

ROWS = [
    {"prompt": "cat?", "completion": "the cat sat"},
    {"prompt": "a dog?", "completion": "the dog lay by the fire"},
    {"prompt": "and who else is on the mat?", "completion": "nobody is"},
    {"prompt": "x", "completion": "the fire"},
    {"prompt": "7 + 1?", "completion": "8"},
]


@pytest.fixture(autouse=True)
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (METRICS, EXTRACTORS, LOGGERS):
        monkeypatch.setattr(registry, "_things", dict(registry._things))


@pytest.fixture
def questions(tmp_path: Path) -> Any:
    """`questions(rows)`: a set of such rows, as a source."""

    def make(rows: Any = ROWS, name: str = "qa") -> dict[str, str]:
        path = tmp_path / f"{name.replace('/', '_')}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return {"path": str(path), "name": name}

    return make


@pytest.fixture
def writing(run_config: Any, questions: Any, texts: Any) -> Any:
    """`writing(generation, **sections)`: a run of 4 steps that writes at 0, 2 and 4."""

    def make(generation: Any = None, rows: Any = ROWS, **over: Any) -> Any:
        values = {
            "data": {
                "learn": [{"path": texts["new_heldout"], "name": "new"}, questions(rows)],
                "max_length": 96,
            },
            "training": {
                "max_steps": 4,
                "eval_steps": 2,
                "save_steps": 2,
                "per_device_eval_batch_size": 2,
            },
            "evaluation": {
                "generation": {
                    "sets": ["qa"],
                    "metrics": ["rouge", "chrf"],
                    "max_new_tokens": 6,
                    **(generation or {}),
                }
            },
        }
        return run_config(**merge(values, over))

    return make


def curve(history: list[dict[str, Any]], name: str = "qa") -> dict[int, dict[str, float]]:
    """The numbers of a set by step; each step once."""
    begin = f"generation/{name}/"
    rows = [row for row in history if any(key.startswith(begin) for key in row)]
    found = {row["step"]: {k.removeprefix(begin): v for k, v in row.items()} for row in rows}
    assert len(found) == len(rows)
    return found


def samples(folder: Path, step: int, name: str = "qa") -> list[dict[str, Any]]:
    lines = (folder / "generation" / f"step-{step}" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_each_curve_has_its_base(writing: Any, loaded: Any, backend: str) -> None:
    result = train(writing(training={"backend": backend}), loaded())
    found = curve(result.history)
    assert sorted(found) == [0, 2, 4]
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum", "chrf", "cut_off"]
    for numbers in found.values():
        assert set(numbers) == {"step", "rows", *names, *(f"base_{name}" for name in names)}
        assert numbers["rows"] == 5
        assert [numbers[f"base_{name}"] for name in names] == [found[0][name] for name in names]
    rows = samples(result.output_dir, 4)
    assert [(row["prompt"][-17:], row["reference"]) for row in rows[:1]] == [
        ("\n\n### Assistant:\n", "the cat sat")
    ]
    assert [row["base"] for row in rows] == [row["tuned"] for row in samples(result.output_dir, 0)]
    assert any(row["base"] != row["tuned"] for row in rows)  # It has learned something.
    page = (result.output_dir / "generation/step-4/qa.md").read_text()
    assert "# qa, step 4" in page and "| rouge1 |" in page and "the cat sat" in page


@pytest.mark.parametrize("method", ["full", "lora"])
def test_other_methods_have_their_base(writing: Any, loaded: Any, method: str) -> None:
    result = train(writing(method=method), loaded())
    found = curve(result.history)
    assert {numbers["base_chrf"] for numbers in found.values()} == {found[0]["chrf"]}
    rows = samples(result.output_dir, 4)
    assert [row["base"] for row in rows] == [row["tuned"] for row in samples(result.output_dir, 0)]


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_training_is_the_same_with_and_without(writing: Any, loaded: Any, backend: str) -> None:
    def noisy(texts: list[str], references: list[str]) -> dict[str, float]:
        import random

        import torch

        return {"noise": random.random() + torch.rand(()).item()}

    register_metric("noisy", noisy)
    runs = []
    for sets in (["qa"], []):
        metrics = {"metrics": ["noisy"]} if sets else {"metrics": ["rouge"], "max_new_tokens": 128}
        model, tokenizer = loaded()
        for layer in model.model.layers:  # So that training draws random numbers.
            layer.self_attn.attention_dropout = 0.3
        training = {"backend": backend, "overwrite_output_dir": True}
        run = writing({"sets": sets, **metrics}, training=training)
        runs.append(train(run, (model, tokenizer)).history)
    losses = [[row["train/loss"] for row in rows if "train/loss" in row] for rows in runs]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert curve(runs[0]) and not curve(runs[1])


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, state: Any) -> None:
        if state.step == self.step:
            state.stop("test")


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_a_resume_continues_the_curve(
    writing: Any, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    def run(name: str) -> Any:
        over = {"backend": backend, "max_steps": 6, "output_dir": str(tmp_path / name)}
        return writing({"eval_steps": 2}, training=over)

    straight = train(run("straight"), loaded())
    train(run("cut"), loaded(), callbacks=[StopAt(3)])
    later = tmp_path / "cut" / "generation" / "step-5"  # Of a process that came further.
    later.mkdir()
    written: list[Any] = []
    monkeypatch.setattr(hook.Generation, "_write_base", lambda *args: written.append(args))
    resumed = train(run("cut"), loaded())
    assert not written and not later.exists()
    at_the_stop = {3: curve(resumed.history)[3]}  # A run that ends is measured there.
    assert curve(resumed.history) == {**curve(straight.history), **at_the_stop}
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert sorted(curve(logged)) == [0, 2, 3, 4, 6]
    assert samples(tmp_path / "cut", 6) == samples(tmp_path / "straight", 6)


def test_the_base_writes_anew_where_it_is_asked_something_else(
    writing: Any, loaded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    train(writing(), loaded(), callbacks=[StopAt(2)])
    caplog.set_level(logging.INFO)
    result = train(writing({"max_new_tokens": 3}), loaded())
    assert "The base writes anew" in caplog.text
    assert sorted(curve(result.history)) == [0, 2, 4]  # Of the step of the stop once, too.
    assert all(len(row["base"]) <= 3 for row in samples(result.output_dir, 4))
    base = Path(result.output_dir, "generation", "base.json")
    meter: Any = SimpleNamespace(sets={"qa": SimpleNamespace(questions=[1])})
    row = '{"text": "", "is_cut": false, "hits": 0, "targets": 0, "labels": {}}'
    right = f'{{"key": "x", "answers": {{"qa": [{row}]}}}}'
    base.write_text(right)
    assert hook._read(base, "x", meter) == {"qa": [Answer("", False)]}
    more = right.replace(row, f"{row}, {row}")
    broken = ['{"key": 1}', "[]", "no JSON", '{"key": "x"}', more, right.replace("text", "words")]
    for text in [*broken, right.replace(row, "1"), right.replace(row, "")]:
        base.write_text(text)
        assert hook._read(base, "x", meter) is None, text


def test_overwriting_a_run_removes_its_texts(writing: Any, loaded: Any) -> None:
    result = train(writing(), loaded())
    train(
        writing(
            {"sets": [], "metrics": ["rouge"], "max_new_tokens": 128},
            training={"overwrite_output_dir": True},
        ),
        loaded(),
    )
    assert not (result.output_dir / "generation").exists()


def test_the_seconds_are_bounded_and_the_log_says_what_was_left_out(
    writing: Any, loaded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = train(writing({"max_seconds": 1e-6}), loaded())
    assert {numbers["rows"] for numbers in curve(result.history).values()} == {2}
    assert len(samples(result.output_dir, 4)) == 2
    assert "Step 4: the model wrote for 2 of 5 rows of qa" in caplog.text
    assert "the rest is not scored (max_seconds=1e-06)" in caplog.text
    told = [r.getMessage() for r in caplog.records if "is going to take" in r.getMessage()]
    assert len(told) == 1 and "An evaluation writes 5 texts" in told[0]
    assert "it ends after 1e-06 s" in told[0]


def test_samples_and_steps_are_bounded(writing: Any, loaded: Any) -> None:
    result = train(writing({"max_samples": 3, "eval_steps": 3}), loaded())
    found = curve(result.history)
    assert sorted(found) == [0, 3, 4] and {numbers["rows"] for numbers in found.values()} == {3}


class FakeTexts(GenerationMeter):
    """Answers at once; the clock is the test's."""

    def _batch(self, model: Any, name: str, rows: range, on_token: Any) -> list[Answer]:
        return [Answer(str(row), False) for row in rows]


def test_time_is_shared_among_sets(writing: Any, loaded: Any, questions: Any) -> None:
    run = writing(
        {"sets": ["qa", "more"], "max_samples": None},
        rows=ROWS * 4,
        data={"retain": [questions(ROWS * 4, "more")]},
    )
    ready = set_up(run, loaded())
    meter = FakeTexts(ready.texts.sets, ready.tokenizer, ready.texts.config, ready.world, 2)
    now = iter(range(100))
    found = meter.write(ready.model, Pace(lambda: float(next(now)), bound=10))
    # The clock strikes once a batch, and as each set begins: at 0 of the first, whose share is 5.
    assert {name: len(rows) for name, rows in found.items()} == {"qa": 10, "more": 8}
    ready.loader.close()


def test_chinese_answers_that_are_right_have_full_marks(
    writing: Any, loaded: Any, shared_data: Path
) -> None:
    lines = (shared_data / "sft/cmath/cmath_dev.jsonl").read_text().splitlines()[:6]
    rows = [json.loads(line) for line in lines]
    asked = [{"prompt": row["input"][:9], "completion": row["input"]} for row in rows]
    model, tokenizer = loaded()
    run = writing({"metrics": ["rouge", "bleu", "chrf"]}, rows=asked)
    ready = set_up(run, (model, tokenizer))
    meter = ready.texts
    assert [one.answer for one in meter.sets["qa"].questions] == [row["input"] for row in rows]
    right = {"qa": [Answer(row["input"], False) for row in rows]}
    wrong = {"qa": [Answer("", True) for _ in rows]}
    compared = {one.name: one for one in meter.measure(wrong, right)["qa"].compared}
    assert compared["bleu"].tuned == pytest.approx(100) and compared["rougeL"].tuned == 1
    assert compared["bleu"].base == compared["rougeL"].base == 0
    assert compared["chrf"].verdict == "better" and compared["cut_off"].verdict == "better"
    # Of the rows that both have: those of the base here are cut before its wrong one.
    few = {"qa": [*right["qa"][:3]]}
    base = {"qa": [*right["qa"][:3], *wrong["qa"][3:]]}
    report = meter.measure(base, few)["qa"]
    compared = {one.name: one for one in report.compared}
    assert report.rows == 3 and compared["bleu"].base == pytest.approx(100)
    result = train(run, loaded())
    assert samples(result.output_dir, 4)[0]["reference"] == rows[0]["input"]


LABELS = [{"prompt": f"{n} is", "completion": ["odd", "even"][n % 2 == 0]} for n in range(6)]


def test_labels_and_targets_are_scored(writing: Any, loaded: Any) -> None:
    run = writing({"metrics": ["auc", "token_accuracy", "exact_match"]}, rows=LABELS)
    result = train(run, loaded())
    for numbers in curve(result.history).values():
        assert 0 <= numbers["auc"] <= 1 and 0 <= numbers["token_accuracy"] <= 1
    base = json.loads((result.output_dir / "generation/base.json").read_text())
    for row in base["answers"]["qa"]:
        assert sum(row["labels"].values()) == pytest.approx(1)
        assert row["targets"] in (4, 5)  # A byte for each letter, and the end.


def test_a_label_is_as_likely_as_the_model_finds_it(writing: Any, loaded: Any) -> None:
    import torch

    model, tokenizer = loaded()
    run = writing({"metrics": ["auc"], "max_samples": 3}, rows=LABELS)
    ready = set_up(run, (model, tokenizer))
    question: Question = ready.texts.sets["qa"].questions[1]
    answers = ready.texts.write(ready.model, Pace(lambda: 0.0))["qa"]

    def log_p(label: str) -> float:
        ids = [*question.prompt_ids, *(byte + 3 for byte in label.encode()), 2]
        with torch.no_grad():
            scores = ready.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        places = range(len(question.prompt_ids), len(ids))
        return sum(scores[place - 1, ids[place]].item() for place in places)

    odd, even = log_p("odd"), log_p("even")
    expected = 1 / (1 + torch.tensor(even - odd).exp().item())
    assert answers[1].labels["odd"] == pytest.approx(expected, rel=1e-4)
    ready.loader.close()


PLUGIN = """
from controlllm.evaluate.texts import register_extractor, register_metric

@register_extractor("first_word")
def first_word(text, marker):
    words = text.split()
    return words[0] if words else None

def words(texts, references, extract):
    return {"first": sum(extract(r) == "the" for r in references), "n": len(texts)}

register_metric("words", words, needs=["extract"], higher_is_better=False)
"""


def test_a_metric_of_ones_own_comes_from_a_file(writing: Any, loaded: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    run = writing(
        {"metrics": ["words"], "extractor": "first_word"},
        data={"plugins": [str(tmp_path / "mine.py")]},
    )
    found = curve(train(run, loaded()).history)
    assert found[4]["first"] == 3 and found[4]["n"] == 5


def test_loggers_that_show_texts_are_shown_them(
    writing: Any, loaded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[Any] = []

    @LOGGERS.register("shows")
    class Shows:
        def __init__(self, context: Any) -> None: ...
        def log(self, metrics: Any, step: int) -> None: ...
        def close(self) -> None: ...
        def log_texts(self, name: str, samples: Any, step: int) -> None:
            shown.append((name, step, [one.reference for one in samples]))

    run = writing(logging={"report_to": ["shows", "jsonl", "tensorboard", "console"]})
    result = train(run, loaded())
    numbers = curve(result.history)[2]
    said = f"step 2/4  generation/qa (5 rows): rouge1 {numbers['rouge1']:.3f} (base "
    assert f"{said}{numbers['base_rouge1']:.3f}), rouge2 " in capsys.readouterr().out
    references = [row["completion"] for row in ROWS]
    assert shown == [("generation/qa", step, references) for step in (0, 2, 4)]
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(result.output_dir / "tensorboard"))
    events.Reload()
    (tag,) = events.Tags()["tensors"]
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
    assert len(texts) == 3 and all("the dog lay by the fire" in text for text in texts)
    curves = read_tensorboard(result.output_dir / "tensorboard")
    assert [step for step, _ in curves["generation/qa/rouge1"]] == [0, 2, 4]


def test_the_end_of_the_data_is_measured(writing: Any, loaded: Any, texts: Any) -> None:
    run = writing(data={"train": [{"path": texts["new"], "epochs": 1}]}, training={"max_steps": 99})
    result = train(run, loaded())
    assert result.stopped_because == "end_of_data"
    last = max(row["step"] for row in result.history)
    assert sorted(curve(result.history)) == sorted({*range(0, last, 2), last})


def test_wandb_gets_a_table(writing: Any, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: sent.append((step, values)), finish=lambda: sent.append("end")
    )
    table = SimpleNamespace
    module = SimpleNamespace(init=lambda **kwargs: run, Table=table)
    monkeypatch.setitem(sys.modules, "wandb", module)
    train(writing(logging={"report_to": ["wandb"]}), loaded())
    assert sent[-1] == "end"
    tables = [
        (step, values["generation/qa/samples"])
        for step, values in sent[:-1]
        if "generation/qa/samples" in values
    ]
    assert [step for step, _ in tables] == [0, 2, 4]
    assert tables[0][1].columns == ["row", "prompt", "reference", "base", "tuned"]
    assert [row[2] for row in tables[0][1].data] == [row["completion"] for row in ROWS]
    steps = [step for step, values in sent[:-1] if "generation/qa/rouge1" in values]
    assert steps == [0, 2, 4] and [step for step, _ in sent[:-1]] == sorted(s for s, _ in sent[:-1])


def test_strange_names_of_sets_make_plain_files(writing: Any, loaded: Any, questions: Any) -> None:
    sets = ["../a b", ".. a/b"]
    held = [questions(ROWS[:2], name) for name in sets]
    run = writing({"sets": sets, "metrics": ["chrf"]}, data={"retain": held})
    folder = train(run, loaded()).output_dir / "generation" / "step-4"
    assert {path.name for path in folder.iterdir()} == {
        "_a_b.jsonl",
        "_a_b.md",
        "_a_b-1.jsonl",
        "_a_b-1.md",
    }


@pytest.mark.parametrize(
    "generation, message",
    [
        ({"sets": ["qaa"]}, r"sets='qaa' is not known; allowed: .*Did you mean 'qa'"),
        ({"sets": ["qa", "qa"]}, r"sets names 'qa' twice"),
        ({"metrics": []}, r"metrics names none"),
        ({"metrics": ["bleu", "bleu"]}, r"metrics names 'bleu' twice"),
        ({"max_new_tokens": 0}, r"max_new_tokens=0 is out of range"),
        ({"max_samples": 0}, r"max_samples=0"),
        ({"max_seconds": 0}, r"max_seconds=0"),
        ({"marker": ""}, r"marker is empty"),
        ({"metric": ["bleu"]}, r"metric"),
    ],
)
def test_nonsense_is_refused_as_the_config_is_made(
    writing: Any, generation: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        writing(generation)


def test_a_name_that_two_sets_have_is_refused(writing: Any, questions: Any) -> None:
    with pytest.raises(ConfigError, match=r"'qa', which data.learn and data.retain both have"):
        writing(data={"retain": [questions()]})


@pytest.mark.parametrize(
    "over, message",
    [
        ({"training": {"torch_compile": True}}, r"torch_compile=true: the many lengths"),
    ],
)
def test_what_it_does_not_go_together_with(writing: Any, over: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        writing(**over)


@pytest.mark.parametrize(
    "generation, message",
    [
        ({"metrics": ["rogue"]}, r"metrics='rogue' is not known.*Did you mean 'rouge'"),
        ({"metrics": ["exact_match"], "extractor": "last"}, r"extractor='last' is not known"),
        ({"sets": ["new"]}, r"'new', whose rows are plain text"),
    ],
)
def test_nonsense_is_refused_before_a_model_is_loaded(
    writing: Any, tmp_path: Path, generation: Any, message: str
) -> None:
    run = writing(generation, model={"model_name_or_path": str(tmp_path / "no model")})
    with pytest.raises(ConfigError, match=message):
        train(run)


def test_a_bad_row_is_refused_before_a_model_is_loaded(writing: Any, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hello?"}]}]
    run = writing(rows=rows, model={"model_name_or_path": str(tmp_path / "no model")})
    with pytest.raises(DataError, match=r"qa.jsonl:1: nobody answers"):
        train(run)


@pytest.mark.parametrize(
    "generation, rows, message",
    [
        ({"max_new_tokens": 128}, ROWS, r"leaves no room for a prompt in the model's context"),
        ({"max_new_tokens": 120}, ROWS, r"no room for an answer in the model's context"),
        ({"metrics": ["auc"]}, ROWS[:1], r"1 different answers; labels are 2 to 20"),
        ({"metrics": ["exact_match"], "extractor": "last_number"}, ROWS[:2], r"finds no answer"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(
    writing: Any,
    loaded: Any,
    monkeypatch: pytest.MonkeyPatch,
    generation: Any,
    rows: Any,
    message: str,
) -> None:
    monkeypatch.setattr(GenerationMeter, "write", lambda *args: pytest.fail("it writes"))
    with pytest.raises(ConfigError, match=message):
        train(writing(generation, rows=rows), loaded())


def test_a_metric_that_takes_a_name_of_ours_is_refused(
    writing: Any, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GenerationMeter, "write", lambda *args: pytest.fail("it writes"))
    register_metric("own", lambda texts, references: {"rows": 1.0})
    with pytest.raises(ConfigError, match=r"a number called 'rows'"):
        train(writing({"metrics": ["own"]}), loaded())


def test_an_extractor_that_fails_is_named(writing: Any, loaded: Any) -> None:
    register_extractor("own")(lambda text, marker: str(1 / 0))
    with pytest.raises(ConfigError, match=r"extractor='own' fails: ZeroDivisionError"):
        train(writing({"metrics": ["exact_match"], "extractor": "own"}), loaded())


def test_settings_that_are_not_read_are_named(writing: Any, loaded: Any) -> None:
    run = writing({"sets": [], "max_new_tokens": 3})
    with pytest.warns(UserWarning, match=r"evaluation.generation.*max_new_tokens=3.*would not"):
        train(run, loaded())
    run = writing({"marker": "=>"}, training={"overwrite_output_dir": True})
    with pytest.warns(UserWarning, match=r"marker='=>' would not be used"):
        train(run, loaded())


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_much_evaluation_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = _Clock()
    monkeypatch.setattr(evaluation_time, "time", clock)
    state: Any = SimpleNamespace(is_first=True, progress=SimpleNamespace(seconds=1000.0))
    times = EvaluationTime()

    def evaluate(seconds: float) -> None:
        with times.counted(state):
            clock.now += seconds

    evaluate(500)  # Before the first step: once, so it does not count.
    times.begin(state)
    state.progress.seconds += 100
    evaluate(24)  # 24 of 124 s are less than a fifth.
    evaluate(0.5)
    assert not caplog.records
    state.progress.seconds += 10
    evaluate(10)  # 34.5 of 144.5 s are more.
    evaluate(100)
    assert len(caplog.records) == 1
    assert "Evaluations take 24 % of the run (34 s of them, 110 s of training)" in caplog.text


def test_a_little_evaluation_is_not_worth_a_word(
    writing: Any, loaded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    train(writing(), loaded())
    assert time.monotonic() - began > 0 and "Evaluations take" not in caplog.text


def test_meter_without_sets_reads_nothing(writing: Any, loaded: Any) -> None:
    run = writing({"sets": [], "metrics": ["rouge"], "max_new_tokens": 128})
    model, tokenizer = loaded()
    ready = set_up(run, (model, tokenizer))
    meter = make_generation_meter(ready.model, tokenizer, run, ready.world)
    assert not meter.enabled and meter.rows == 0
    ready.loader.close()
