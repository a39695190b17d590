"""The same laws where a GPU is present."""

import pytest

from controlllm.train import train

pytestmark = pytest.mark.gpu


def losses(history):
    return [row["train/loss"] for row in history if "train/loss" in row]


def test_float32_losses_equal_the_cpus(run_config, loaded, tmp_path):
    runs = []
    for device in ("cpu", "cuda"):
        training = {"output_dir": str(tmp_path / device)}
        run = run_config(model={"device": device}, training=training)
        runs.append(losses(train(run, loaded()).history))
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-3)  # what follows may drift apart


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_bf16_learns(run_config, loaded, backend):
    run = run_config(
        model={"device": "cuda"},
        training={"backend": backend, "bf16": True, "max_steps": 12},
        rehearsal={"num_sequences": 4},
    )
    result = train(run, loaded())
    assert result.history[-1]["learn/new/gain"] > 0.5
    assert result.model.device.type == "cuda"
    again = train(run, loaded())  # a finished run comes back from its checkpoint
    assert again.history == result.history
