import json
import sys

import pytest

from controlllm.common.errors import ConfigError
from controlllm.train import train
from controlllm.train.record.loggers import LOGGERS, JsonLinesLogger, LoggerContext, make_loggers
from controlllm.train.setup.ready import set_up


@pytest.fixture
def context(run_config, tmp_path):
    def make(start_step=0, report_to=("jsonl",)):
        run = run_config(logging={"report_to": list(report_to)})
        return LoggerContext(run, total_steps=20, start_step=start_step)

    return make


def lines(context):
    text = (context.folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_jsonl_continues_without_repeating_steps(context):
    logger = JsonLinesLogger(context())
    for step in (2, 4, 6):
        logger.log({"train/loss": step / 2}, step)
    logger.close()
    with (context().folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/l')  # killed while writing
    logger = JsonLinesLogger(context(start_step=4))
    logger.log({"train/loss": 9.0}, 6)
    logger.close()
    assert [(row["step"], row["train/loss"]) for row in lines(context())] == [
        (2, 1),
        (4, 2),
        (6, 9),
    ]


def test_a_new_run_starts_a_new_file(context):
    for _ in range(2):
        logger = JsonLinesLogger(context())
        logger.log({"a": 1.0}, 1)
        logger.close()
    assert len(lines(context())) == 1


def test_jsonl_stays_json_when_a_value_is_not_finite(context):
    logger = JsonLinesLogger(context())
    logger.log({"a": float("nan"), "b": float("inf"), "c": 1.0}, 1)
    logger.close()
    text = (context().folder / "metrics.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert (row["a"], row["b"], row["c"]) == (None, None, 1.0)


def read_tensorboard(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_holds_what_the_history_holds(run_config, loaded):
    result = train(run_config(logging={"report_to": ["tensorboard", "jsonl"]}), loaded())
    curves = read_tensorboard(result.output_dir / "tensorboard")
    names = {key for row in result.history for key in row} - {"step"}
    assert set(curves) == names
    for name in ("train/loss", "train/divergence/layer_1", "retain/old/forgetting"):
        expected = [(row["step"], row[name]) for row in result.history if name in row]
        assert [step for step, _ in curves[name]] == [step for step, _ in expected]
        assert [v for _, v in curves[name]] == pytest.approx([v for _, v in expected], rel=1e-5)


def test_tensorboard_continues_without_repeating_steps(context):
    for start, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        (logger,) = make_loggers(context(start, ["tensorboard"]))
        for step in steps:
            logger.log({"train/loss": float(start)}, step)
        logger.close()
    curves = read_tensorboard(context().folder / "tensorboard")
    assert curves["train/loss"] == [(2, 0.0), (4, 0.0), (6, 4.0), (8, 4.0)]


def test_without_tensorboard_training_goes_on_and_says_so(context, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match="pip install"):
        (logger,) = make_loggers(context(report_to=["tensorboard"]))
    logger.log({"a": 1.0}, 1)
    logger.close()


def test_wandb_is_asked_for_by_name_and_must_be_there(context, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        make_loggers(context(report_to=["wandb"]))


def test_the_console_prints_plain_lines_without_a_terminal(run_config, loaded, capsys):
    train(run_config(logging={"report_to": ["console"]}), loaded())
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 9
    assert out[0].startswith("step 0/6  learn/new ") and "forgetting +0.000, kl 0.000" in out[0]
    assert out[1].startswith("step 1/6  loss ") and "tokens/s  ETA 0:00:" in out[1]
    assert not any("\x1b" in line for line in out)


def test_the_console_names_what_a_callback_logs(context, capsys):
    (logger,) = make_loggers(context(report_to=["console"]))
    logger.log({"mine/since_best": 2.0, "mine/share": 0.0125}, 3)
    logger.close()
    assert capsys.readouterr().out == "step  3/20  mine/since_best 2  mine/share 0.0125\n"


def test_the_console_shows_a_bar_on_a_terminal(context, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    (logger,) = make_loggers(context(start_step=4, report_to=["console"]))
    metrics = {"loss": 1.5, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens_per_second": 2e3}
    logger.log({f"train/{name}": value for name, value in metrics.items()}, 10)
    logger.log({"learn/a/loss": 2.0, "learn/a/gain": 0.25}, 10)
    logger.close()
    logger.close()  # closing twice does no harm
    out = capsys.readouterr().out
    assert "learn/a 2.000 (gain +0.250)" in out
    assert "10/20" in out and "loss 1.5000" in out


def test_all_loggers_of_the_config_exist(context):
    assert LOGGERS.names() == ["console", "jsonl", "tensorboard", "wandb"]
    assert all(callable(LOGGERS.get(name)) for name in LOGGERS.names())


def test_loggers_of_the_trainer_get_our_metrics(run_config, loaded, monkeypatch):
    """As mlflow or comet would, through the Trainer's own set-up of what report_to names."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    seen, ended = [], []

    class Recorder(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            assert args.run_name == "trial"
            seen.append({"step": state.global_step, **logs})

        def on_train_end(self, args, state, control, **kwargs):
            ended.append(state.global_step)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "recorder", Recorder)
    logging = {"report_to": ["jsonl", "recorder"], "run_name": "trial"}
    result = train(run_config(logging=logging, training={"backend": "hf"}), loaded())
    ours = [row for row in seen if "total_flos" not in row]  # The Trainer's own last words.
    assert ours == result.history and len(ours) > 6
    assert ended == [6]


def test_a_logger_without_its_package_is_refused_before_anything_is_loaded(run_config):
    run = run_config(logging={"report_to": ["mlflow"]}, training={"backend": "hf"})
    with pytest.raises(ConfigError, match="pip install mlflow"):
        set_up(run)


def test_loggers_of_the_trainer_need_the_trainer(run_config):
    with pytest.raises(ConfigError, match="backend=hf"):
        run_config(logging={"report_to": ["mlflow"]})
