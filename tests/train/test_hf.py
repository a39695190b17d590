"""`transformers.Trainer` and the native loop are the same run."""

import pytest
import torch
from tests.train.helpers import losses_of

from controlllm.train import train
from controlllm.train.record.recorder import Recorder

OVERS = {
    "control": {"data": {"packing": False}},
    "retain": {"preset": "retain", "rehearsal": {"num_sequences": 4, "share": 0.3}},
    "full": {"method": "full", "training": {"gradient_accumulation_steps": 1}},
    "bf16, no clipping": {"training": {"bf16": True, "max_grad_norm": 0.0}},
}


def run_with(backend, run_config, loaded, tmp_path, over):
    training = {"backend": backend, "output_dir": str(tmp_path / backend)}
    return train(run_config(**over | {"training": over.get("training", {}) | training}), loaded())


@pytest.mark.parametrize("name", OVERS)
def test_both_loops_give_the_same_losses_step_by_step(run_config, loaded, tmp_path, name):
    native, hf = (
        run_with(backend, run_config, loaded, tmp_path, OVERS[name]) for backend in ("native", "hf")
    )
    assert len(native.history) == len(hf.history) == 9
    for row, other in zip(losses_of(native.history), losses_of(hf.history), strict=True):
        assert other == pytest.approx(row, rel=1e-5, abs=1e-7)
    states = native.model.state_dict(), hf.model.state_dict()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-5, atol=1e-6)
    assert hf.best.step == native.best.step


def test_a_run_begun_by_one_loop_is_finished_by_the_other(
    run_config, loaded, tmp_path, monkeypatch
):
    """A checkpoint means the same to both."""
    over = OVERS["retain"]
    straight = run_with("native", run_config, loaded, tmp_path, over)

    class Stopped(Exception):
        pass

    after_step = Recorder.after_step

    def dying(self, *args):
        if self.state.step == 4:
            raise Stopped
        after_step(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Recorder, "after_step", dying)
        run_with("hf", run_config, loaded, tmp_path, over)
    training = {
        "backend": "native",
        "output_dir": str(tmp_path / "hf"),
        "resume_from_checkpoint": str(tmp_path / "hf" / "checkpoint-4"),
    }
    resumed = train(run_config(**over | {"training": training}), loaded())
    for row, other in zip(losses_of(straight.history), losses_of(resumed.history), strict=True):
        assert other == pytest.approx(row, rel=1e-5, abs=1e-7)


def test_resuming_with_the_trainer_equals_the_straight_run(
    run_config, loaded, tmp_path, monkeypatch
):
    over = {"training": {"backend": "hf", "output_dir": str(tmp_path / "a")}}
    straight = train(run_config(**over), loaded())
    over["training"]["output_dir"] = str(tmp_path / "b")
    after_step = Recorder.after_step

    def dying(self, *args):
        if self.state.step == 3:
            raise KeyboardInterrupt
        after_step(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Recorder, "after_step", dying)
        train(run_config(**over), loaded())
    resumed = train(run_config(**over), loaded())
    assert losses_of(resumed.history) == losses_of(straight.history)


def test_a_budget_stops_the_trainer(run_config, loaded):
    result = train(run_config(training={"backend": "hf", "max_tokens": 300}), loaded())
    assert (result.stopped_because, result.history[-1]["step"]) == ("max_tokens", 3)
