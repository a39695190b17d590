"""What cannot work together is refused, by the table that the page is made of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.processes import run_processes

from controlllm.common.errors import ConfigError
from controlllm.train.config.compatibility import REFUSED, WAYS, Setting
from controlllm.train.config.registries import BACKENDS
from controlllm.train.config.run_config import RunConfig
from controlllm.train.config.strategies import STRATEGIES
from controlllm.train.config.support import MARKS, page
from controlllm.train.parallel.deepspeed_config import check_precision, deepspeed_config

ROOT = Path(__file__).parents[2]


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted names to sections."""
    values: dict[str, Any] = {}
    for path, value in settings.items():
        *sections, name = path.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return values


def set_by(setting: Setting) -> str:
    """The dotted name that meets a setting."""
    follows = {
        "training.fuses_loss": "training.use_liger_kernel",
        "evaluation.generation.enabled": "evaluation.generation.sets",
    }
    return follows.get(setting.path, setting.path)


def given(setting: Setting) -> Any:
    """A value that meets a setting."""
    if setting.values is not None:
        return setting.values()[0]
    default = setting.of(RunConfig())
    named: dict[str, Any] = {"model.quantize_base": "int8", "peft.type": "lora"}
    named["continue_from"] = "runs/a"
    named["evaluation.generation.enabled"] = ["qa"]
    if setting.path in named:
        return named[setting.path]
    return True if isinstance(default, bool) else 4


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: f"{row.one.path}, {row.other.path}")
def test_each_row_of_the_table_is_refused(row: Any) -> None:
    settings = {set_by(s): given(s) for s in (row.one, row.other)}
    held_out = {"data.learn": [{"path": "qa.jsonl"}]}
    if str(settings.get("parallel.strategy", "")).startswith("zero"):
        settings["training.backend"] = "hf"
    with pytest.raises(ConfigError, match="does not go together") as error:
        RunConfig.from_dict(nested(held_out | settings))
    assert row.why in str(error.value) and row.instead in str(error.value)
    for path, value in settings.items():  # Each by itself is fine.
        alone = {path: value}
        if path == "parallel.strategy":
            alone["training.backend"] = "hf"
        RunConfig.from_dict(nested(held_out | alone))


def test_the_back_ends_and_strategies_of_the_table_are_all_there_are() -> None:
    for backend in BACKENDS.names():
        for strategy in STRATEGIES.names():
            values = nested({"training.backend": backend, "parallel.strategy": strategy})
            if (backend, strategy) in WAYS:
                RunConfig.from_dict(values)
            else:
                with pytest.raises(ConfigError, match="does not go together"):
                    RunConfig.from_dict(values)


def test_the_page_is_the_table() -> None:
    start, end = MARKS
    text = (ROOT / "docs" / "support.md").read_text()
    assert text.partition(start)[2].partition(end)[0].strip() == page().strip(), (
        "write it anew: python -m controlllm.train.config.support"
    )


def config_of(folder: Path, deepspeed: Any, **over: Any) -> dict[str, Any]:
    """In a process of its own: those of other tests are forked from one without DeepSpeed."""
    parallel = {"strategy": "zero3", "deepspeed": deepspeed}
    training = {"backend": "hf", **over}
    run = RunConfig.from_dict({"parallel": parallel, "training": training})
    [outcome] = run_processes([lambda: deepspeed_config(run, 3, on_cpu=True)], folder)
    if outcome.error is not None:
        assert outcome.error.startswith("ConfigError: "), outcome.trace
        raise ConfigError(outcome.error)
    return outcome.value


def test_deepspeeds_settings_are_the_runs_and_over_them_those_of_its_config(
    tmp_path: Path,
) -> None:
    file = tmp_path / "ds.json"
    file.write_text(
        '{"zero_optimization": {"overlap_comm": true}, "bf16": "auto", "steps_per_print": 7}'
    )
    found = config_of(tmp_path, str(file), max_grad_norm=0.5, bf16=True)
    assert found["zero_optimization"] == {"stage": 3, "overlap_comm": True}
    assert found["bf16"] == {"enabled": True} and found["steps_per_print"] == 7
    assert found["gradient_clipping"] == 0.5 and found["gradient_accumulation_steps"] == 3


def test_what_a_config_of_transformers_leaves_open_is_the_runs(tmp_path: Path) -> None:
    open_sections = {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
        "zero_optimization": {"reduce_bucket_size": "auto"},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
    }
    found = config_of(tmp_path, open_sections, bf16=True)
    agreed = config_of(tmp_path, {"bf16": {"enabled": True}}, bf16=True)
    assert agreed["bf16"] == found["bf16"]
    assert found.keys().isdisjoint({"optimizer", "scheduler", "fp16", "train_batch_size"})
    assert found["bf16"] == {"enabled": True} and found["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("deepspeed", "parts"),
    [
        ({"train_batch_size": 8}, ["train_batch_size", "per_device_train_batch_size"]),
        ({"optimizer": {"type": "Adam"}}, ["optimizer", "training.optim"]),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "eps": "auto"}}},
            ["optimizer", "training.optim"],
        ),
        (
            {"optimizer": {"type": "Lamb", "params": {"lr": "auto"}}},
            ["optimizer", "training.optim"],
        ),
        ({"bf16": {"enabled": True}}, ["bf16", "training.bf16"]),
        ({"zero_optimization": {"stage": 2}}, ["stage 2", "zero3"]),
        ({"zero_optimisation": {"stage": 3}}, ["zero_optimisation", "Did you mean"]),
        (
            {"zero_optimization": {"zero_hpz_partion_size": 2}},
            ["zero_hpz_partion_size", "Did you mean 'zero_hpz_partition_size'"],
        ),
        ({"zero_optimization": {"zero_hpz_partition_size": "two"}}, ["zero_hpz_partition_size"]),
        ({"zero_optimization": True}, ["must be a mapping"]),
        (
            {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
            ["alphas", "at least 2"],
        ),
        ({"zero_optimization": {"zero_quantized_gradients": True}}, ["needs a GPU"]),
        ("nowhere.json", ["nowhere.json", "cannot be read"]),
    ],
)
def test_settings_of_deepspeed_that_contradict_the_run_are_refused(
    deepspeed: Any, parts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        config_of(tmp_path, deepspeed)
    for part in parts:
        assert part in str(error.value)


def test_weights_that_deepspeed_would_not_compute_in_are_refused(pico_llama: Any) -> None:
    model = pico_llama().bfloat16()
    check_precision(model, torch.bfloat16)
    check_precision(model.float(), None)
    with pytest.raises(ConfigError, match=r"is bfloat16; set training\.bf16=true"):
        check_precision(model.bfloat16(), None)


def test_settings_of_deepspeed_are_for_deepspeed() -> None:
    with pytest.raises(ConfigError, match="zero2"):
        RunConfig.from_dict({"parallel": {"deepspeed": {"steps_per_print": 1}}})
