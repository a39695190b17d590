import pytest
from transformers import AutoTokenizer

from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.train import RunConfig, train
from controlllm.train.record.folder import open_run_folder


def test_a_fresh_folder_gets_the_resolved_config(run_config, tmp_path):
    run = run_config(preset="retain")
    assert open_run_folder(run) is None
    assert RunConfig.from_yaml(tmp_path / "run" / "config.yaml") == run


def test_a_run_is_repeated_from_its_saved_config(run_config, loaded, tmp_path):
    first = train(run_config(), loaded())
    repeated = RunConfig.from_yaml(first.output_dir / "config.yaml")
    repeated.training.output_dir = str(tmp_path / "again")
    again = train(repeated, loaded())
    assert [r.get("train/loss") for r in again.history] == [
        r.get("train/loss") for r in first.history
    ]


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_folder_of_something_else_is_refused_untouched(run_config, tmp_path, resume):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("important")
    with pytest.raises(ConfigError, match=r"not empty.*overwrite_output_dir"):
        open_run_folder(run_config(training={"resume_from_checkpoint": resume}))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_run_folder_loads_with_the_template_it_was_trained_with(run_config, loaded):
    assert not loaded()[1].chat_template
    result = train(run_config(), loaded())
    tokenizer = AutoTokenizer.from_pretrained(result.output_dir)
    assert "### " in tokenizer.chat_template
    assert tokenizer("the cat").input_ids == loaded()[1]("the cat").input_ids


def test_overwriting_removes_only_what_runs_write(run_config, loaded, tmp_path):
    train(run_config(), loaded())
    (tmp_path / "run" / "thesis.txt").write_text("important")
    training = {"overwrite_output_dir": True}
    assert open_run_folder(run_config(training=training)) is None
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"thesis.txt", "config.yaml"}


def test_a_finished_run_is_not_run_over(run_config, loaded):
    train(run_config(), loaded())
    with pytest.raises(ConfigError, match="not empty"):
        open_run_folder(run_config(training={"resume_from_checkpoint": "never"}))
    with pytest.raises(ConfigError, match="seed was 42, is 7"):
        open_run_folder(run_config(training={"seed": 7}))


def test_what_does_not_change_results_may_change(run_config, loaded):
    train(run_config(), loaded())
    training = {"save_steps": 5, "max_tokens": 10**6}
    run = run_config(training=training, logging={"report_to": ["console"]})
    assert open_run_folder(run).name == "checkpoint-6"


def test_a_run_killed_before_its_first_checkpoint_starts_anew(run_config, tmp_path):
    open_run_folder(run_config())
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    assert open_run_folder(run_config()) is None


def test_an_older_checkpoint_of_the_same_folder_is_refused(run_config, loaded, tmp_path):
    train(run_config(), loaded())
    older = str(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ConfigError, match="checkpoint-6, which is not the checkpoint"):
        open_run_folder(run_config(training={"resume_from_checkpoint": older}))
    elsewhere = {"resume_from_checkpoint": older, "output_dir": str(tmp_path / "branch")}
    assert open_run_folder(run_config(training=elsewhere)).name == "checkpoint-2"


def test_a_checkpoint_that_is_not_there_is_named(run_config):
    training = {"resume_from_checkpoint": "nowhere/checkpoint-9"}
    with pytest.raises(CheckpointError, match="checkpoint-9"):
        open_run_folder(run_config(training=training))


def test_a_file_in_the_way_is_named(run_config, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        open_run_folder(run_config())
