import jsonargparse
import pytest

from controlllm.common.errors import ConfigError
from controlllm.train import RunConfig, TrainingConfig, preset_values
from controlllm.train.config.presets import PRESETS
from controlllm.train.config.run_config import tell_without_effect


def test_yaml_round_trip_is_exact(run_config, tmp_path):
    run = run_config(preset="retain", training={"learning_rate": "1e-3"})
    run.to_yaml(tmp_path / "run.yaml")
    assert RunConfig.from_yaml(tmp_path / "run.yaml") == run
    assert run.training.learning_rate == 1e-3  # YAML 1.1 reads 1e-3 as a text


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"plain", "adapter"}))
def test_a_preset_gives_defaults_only(name):
    plain = RunConfig.from_dict({"preset": name})
    assert plain.expansion.divergence == preset_values(name)["expansion"]["divergence"]
    over = RunConfig.from_dict({"preset": name, "expansion": {"divergence": "cosine"}})
    assert over.expansion.divergence == "cosine"
    assert over.expansion.divergence_weight == plain.expansion.divergence_weight


@pytest.mark.parametrize(("name", "method"), [("plain", "full"), ("adapter", "lora")])
def test_presets_without_copies_rehearse_as_sidecar_does(name, method):
    run, sidecar = (RunConfig.from_dict({"preset": one}) for one in (name, "sidecar"))
    assert run.method == method and run.rehearsal == sidecar.rehearsal
    assert name != "adapter" or run.peft.r == 16
    assert RunConfig.from_dict({"preset": "plain", "method": "lora"}).method == "lora"


def test_a_preset_that_changes_nothing_is_said(caplog):
    resolved = RunConfig.from_dict({"expansion": {"alpha": 0.3}}).to_dict()
    tell_without_effect(resolved | {"preset": "paper"})
    assert "changes nothing" in caplog.text and "expansion.alpha=0.3" in caplog.text
    caplog.clear()
    tell_without_effect(RunConfig.from_dict({"preset": "paper"}).to_dict())
    tell_without_effect({"preset": "paper", "expansion": {"alpha": 0.3}})
    assert not caplog.text


def test_preset_values_are_fresh():
    preset_values("retain")["training"]["alpha_sampling"][0] = 99
    assert preset_values("retain")["training"]["alpha_sampling"] == [0.2, 0.8]


def test_paper_preset_is_the_papers_schedule():
    training = RunConfig.from_dict({"preset": "paper"}).training
    assert training.learning_rate * training.min_lr_rate == pytest.approx(1e-5)
    assert (training.warmup_steps, training.max_grad_norm) == (1000, 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainin": {}}, "trainin is not a setting. Did you mean training"),
        ({"training": {"learning_rte": 1}}, "training.learning_rte .*mean training.learning_rate"),
        ({"training": {"logging_steps": 1}}, "training.logging_steps .*mean logging.logging_steps"),
        ({"training": {"xyzzy": 1}}, "training.xyzzy is not a setting. See"),
        ({"training": {"max_steps": "many"}}, "training.max_steps='many' must be a whole number"),
        ({"training": {"max_steps": 0}}, "training.max_steps=0 .* at least 1"),
        ({"training": {"backend": "nativ"}}, "training.backend='nativ'.*'native'"),
        ({"training": {"alpha_sampling": [0.8, 0.2]}}, "low < high"),
        ({"training": {"stop_on_budget": True}}, "needs training.max_forgetting"),
        (
            {"training": {"total_train_batch_size": 8, "gradient_accumulation_steps": 2}},
            "gradient_accumulation_steps=2 would not be used: training.total_train_batch_size sets",
        ),
        ({"parallel": {"shard_size": 2}}, "shard_size=2 would not be used: only .*=hsdp"),
        ({"training": 3}, "training=3 must be a mapping"),
        ({"preset": "papers"}, "'paper'"),
        ({"data": {"train": [{"pth": "x"}]}}, r"data.train\[0\].pth"),
        ({"data": {"train": {"path": "x"}}}, "data.train=.* must be a list"),
        ({"data": {"train": [{}]}}, r"data.train\[0\] is incomplete.*path"),
        ({"logging": {"report_to": ["jsnl"]}}, "jsonl"),
        ({"rehearsal": {"share": 1.5}}, "rehearsal.share=1.5"),
        (
            {"method": "full", "preset": "retain", "training": {"alpha_sampling": [0, 1]}},
            "no alpha",
        ),
        ({"expansion": {"alpha": 2}}, "alpha=2"),
    ],
)
def test_wrong_values_say_what_is_allowed(values, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_dict(values)


def test_a_missing_or_broken_run_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        RunConfig.from_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        RunConfig.from_yaml(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        RunConfig.from_yaml(tmp_path / "list.yaml")


def test_one_logger_may_stand_without_brackets():
    run = RunConfig.from_dict({"logging": {"report_to": "jsonl"}})
    assert run.logging.report_to == ["jsonl"]
    with pytest.raises(ConfigError, match="report_to"):
        RunConfig.from_dict({"logging": {"report_to": "jsonll"}})


def test_jsonargparse_parses_the_same_config():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RunConfig)
    arguments = ["--training.learning_rate=1e-3", "--training.alpha_sampling=[0.1,0.9]"]
    parsed = parser.instantiate(parser.parse_args(arguments))
    expected = TrainingConfig(learning_rate=1e-3, alpha_sampling=[0.1, 0.9])
    assert parsed.training == expected
