"""The same laws where a GPU is present."""

from typing import Any

import pytest
import torch

from controlllm.train import train

pytestmark = pytest.mark.gpu


def losses(history):
    return [row["train/loss"] for row in history if "train/loss" in row]


def test_float32_losses_equal_the_cpus(run_config, loaded, tmp_path, gpu):
    runs = []
    for name, device in (("one", "cpu"), ("two", gpu)):
        training = {"output_dir": str(tmp_path / name)}
        run = run_config(model={"device": device}, training=training)
        runs.append(losses(train(run, loaded()).history))
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-3)  # what follows may drift apart


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_bf16_learns(run_config, loaded, backend, gpu):
    run = run_config(
        model={"device": gpu},
        training={"backend": backend, "bf16": True, "max_steps": 12},
        rehearsal={"num_sequences": 4},
    )
    result = train(run, loaded())
    assert result.history[-1]["learn/new/gain"] > 0.5
    assert result.model.device.type == gpu
    again = train(run, loaded())  # a finished run comes back from its checkpoint
    assert again.history == result.history


def test_compiled_blocks_learn_the_same(
    run_config: Any, loaded: Any, tmp_path: Any, monkeypatch: Any, gpu: str
) -> None:
    """By inductor on a GPU, by dynamo alone elsewhere, where inductor takes minutes."""
    own = torch.nn.Module.compile
    if gpu != "cuda":
        monkeypatch.setattr(torch.nn.Module, "compile", lambda one: own(one, backend="eager"))
    found = []
    for on in (False, True):
        training = {"torch_compile": on, "bf16": True, "max_steps": 2}
        run = run_config(
            model={"device": gpu},
            data={"packing": False},  # A loop over documents cannot be traced as a whole.
            training={**training, "output_dir": str(tmp_path / f"{on}")},
        )
        found.append(losses(train(run, loaded()).history))
    assert found[1] == pytest.approx(found[0], rel=2e-2)
