import pytest
import torch

from controlllm.checkpoint import best_checkpoint, load_checkpoint, newest_checkpoint
from controlllm.common.errors import ConfigError, TrainingError
from controlllm.train import train
from controlllm.train.loops.native import NativeLoop
from controlllm.train.record.recorder import Recorder
from controlllm.train.setup.ready import set_up
from controlllm.train.setup.stages import Ready


def test_frozen_tensors_stay_bit_identical_and_have_no_gradients(run_config, loaded):
    base = {n: p.clone() for n, p in loaded()[0].named_parameters()}
    model = train(run_config(), loaded()).model
    moved = False
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None
        if "expanded" in name:
            original = base[name.removeprefix("base.").replace("expanded.", "")]
            moved = moved or not torch.equal(parameter, original)
    assert moved
    for name, parameter in model.unload().named_parameters():
        assert torch.equal(parameter, base[name]), name


def test_the_loss_falls_and_the_history_names_everything(run_config, loaded):
    result = train(run_config(training={"max_steps": 12}), loaded())
    first, last = result.history[1], result.history[-1]
    assert last["learn/new/gain"] > 0.5
    assert last["retain/old/forgetting"] == last["retain/old/loss"] - last["retain/old/base_loss"]
    assert last["retain/old/kl"] > 0
    assert result.history[0]["retain/old/kl"] == 0  # measured before the first step
    assert {"train/loss", "train/divergence/layer_1", "train/alpha/layer_3"} <= first.keys()
    assert first["train/alpha/layer_3"] == 0.5
    assert result.stopped_because == "max_steps"
    assert result.best.step == 12


def test_full_tuning_trains_every_weight(run_config, loaded):
    base, _ = loaded()
    result = train(run_config(method="full"), loaded())
    for (name, before), after in zip(
        base.named_parameters(), result.model.parameters(), strict=True
    ):
        assert not torch.equal(before, after), name
    assert result.history[-1]["retain/old/kl"] > 0
    assert result.history[0]["retain/old/forgetting"] == 0


def test_the_same_seed_gives_the_same_run(run_config, loaded, tmp_path):
    one, two = (
        train(run_config(training={"output_dir": str(tmp_path / name)}), loaded()) for name in "ab"
    )
    assert [row.get("train/loss") for row in one.history] == [
        row.get("train/loss") for row in two.history
    ]


@pytest.mark.parametrize("packing", [True, False])
def test_accumulation_changes_nothing_over_a_whole_run(run_config, loaded, tmp_path, packing):
    """Rows come from the loader in the same order, whatever the size of its batches."""
    runs = []
    for size, steps in ((4, 1), (2, 2), (1, 4)):
        training = {
            "output_dir": str(tmp_path / f"{size}"),
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": steps,
        }
        runs.append(train(run_config(training=training, data={"packing": packing}), loaded()))
    losses = [[row["train/loss"] for row in r.history if "train/loss" in row] for r in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_alpha_is_drawn_each_step_and_never_left_behind(run_config, loaded, monkeypatch):
    run = run_config(
        training={"alpha_sampling": [0.2, 0.8]}, expansion={"dial": {1: 0.3}, "num_blocks": 2}
    )
    ready = set_up(run, loaded())
    recorder = Recorder(ready, None)
    seen = []
    forward = ready.loss.micro_batch
    monkeypatch.setattr(
        ready.loss,
        "micro_batch",
        lambda *a: (seen.append(ready.model.alphas()), forward(*a))[1],
    )
    NativeLoop(ready, recorder).run()
    alphas = [alpha[1] for alpha in seen]
    assert all(set(alpha.values()) == {alpha[1]} for alpha in seen)  # one for all layers
    assert alphas[0::2] == alphas[1::2]  # both micro-batches of a step
    assert len(set(alphas)) == 6 and all(0.2 <= alpha <= 0.8 for alpha in alphas)
    assert ready.model.expansion.dial == {1: 0.3}
    assert ready.model.alphas() == {1: 0.3, 3: 0.5}
    saved = load_checkpoint(recorder.state.folder / "checkpoint-6").model
    assert saved["config"]["expansion"]["dial"] == {"1": 0.3}


def test_alpha_sampling_draws_do_not_depend_on_the_global_seed(run_config, loaded, tmp_path):
    def draws(consume):
        training = {"alpha_sampling": [0, 1], "output_dir": str(tmp_path / str(consume))}
        ready = set_up(run_config(training=training), loaded())
        torch.rand(consume)
        return [ready.alphas.draw() for _ in range(4)]

    assert draws(0) == draws(5)


@pytest.mark.parametrize(
    ("training", "reason", "steps"),
    [
        ({"max_tokens": 300}, "max_tokens", 3),
        ({"max_seconds": 1e-9}, "max_seconds", 1),
        ({"max_forgetting": 0.0, "stop_on_budget": True, "eval_steps": 4}, "max_forgetting", 4),
    ],
)
def test_budgets_stop_and_leave_a_checkpoint(run_config, loaded, training, reason, steps):
    result = train(run_config(training=training), loaded())
    assert result.stopped_because == reason
    assert result.history[-1]["step"] == steps
    assert (result.output_dir / f"checkpoint-{steps}").is_dir()


def test_the_best_step_keeps_to_the_budget(run_config, loaded):
    training = {"max_steps": 4, "eval_steps": 1, "save_steps": 4, "save_total_limit": 1}
    training |= {"learning_rate": 5e-3}  # Slow enough that every step forgets more.
    unbounded = train(run_config(training=training), loaded())
    assert unbounded.best.step == 4
    forgetting = [row[key] for row in unbounded.history if (key := "retain/old/forgetting") in row]
    budget = (forgetting[2] + forgetting[3]) / 2
    assert forgetting[1] < forgetting[2] < budget < min(forgetting[3:]), "the run must forget"
    training |= {"max_forgetting": budget, "overwrite_output_dir": True}
    bounded = train(run_config(training=training), loaded())
    assert bounded.best.step == 2
    assert bounded.best.forgetting == forgetting[2]
    names = sorted(path.name for path in bounded.output_dir.glob("checkpoint-*"))
    assert names == ["checkpoint-2", "checkpoint-4"]  # the best one is never pruned
    assert best_checkpoint(bounded.output_dir).name == "checkpoint-2"


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    run_config, loaded, monkeypatch, backend
):
    to_device = Ready.to_device
    calls = []

    def poisoned(self, batch):
        """The third step's rows make the weights overflow."""
        calls.append(1)
        if len(calls) == 5:
            self.model.blocks[1].expanded.input_layernorm.weight.data[:] = float("nan")
        return to_device(self, batch)

    run = run_config(training={"backend": backend})
    if backend == "native":
        monkeypatch.setattr(Ready, "to_device", poisoned)
    else:
        from controlllm.train.loops.hf import ControlLLMTrainer

        prepare = ControlLLMTrainer._prepare_inputs
        monkeypatch.setattr(
            ControlLLMTrainer,
            "_prepare_inputs",
            lambda self, batch: prepare(self, poisoned(self.ready, batch)),
        )
    with pytest.raises(TrainingError, match=r"step 3: .*nan.*checkpoint-2"):
        train(run, loaded())
    folder = run.training.output_dir
    state = load_checkpoint(newest_checkpoint(folder))
    assert state.step == 2
    assert all(tensor.isfinite().all() for tensor in state.tensors.values())


def test_bf16_keeps_trained_weights_in_float32(run_config, loaded):
    model, tokenizer = loaded()
    run = run_config(training={"bf16": True}, expansion={"expand_ends": True})
    result = train(run, (model.to(torch.bfloat16), tokenizer))
    for name, parameter in result.model.named_parameters():
        expected = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == expected, name
    assert result.history[-1]["learn/new/gain"] > 0


def test_gradient_checkpointing_changes_nothing(run_config, loaded, tmp_path):
    losses, calls = [], []
    for on in (False, True):
        training = {"gradient_checkpointing": on, "output_dir": str(tmp_path / str(on))}
        model, tokenizer = loaded()
        calls.append(0)
        model.model.layers[3].mlp.register_forward_pre_hook(
            lambda *_: calls.append(calls.pop() + 1)
        )
        history = train(run_config(training=training), (model, tokenizer)).history
        losses.append([row["train/loss"] for row in history if "train/loss" in row])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert calls[1] > calls[0]  # it was recomputed


def test_epochs_become_steps(run_config, loaded):
    run = run_config(training={"num_train_epochs": 2}, data={"packing": False})
    ready = set_up(run, loaded())
    rows = ready.loader.size().examples
    assert ready.total_steps == -(-2 * rows // 4)


def test_a_run_without_a_model_or_data_says_so(run_config, loaded):
    with pytest.raises(ConfigError, match=r"model\.model_name_or_path"):
        train(run_config())
    with pytest.raises(ConfigError, match=r"data\.train"):
        train(run_config(data={"train": []}, training={"overwrite_output_dir": True}), loaded())
    with pytest.raises(ConfigError, match="not a device"):
        run = run_config(model={"device": "gpu"}, training={"overwrite_output_dir": True})
        train(run, loaded())


def test_an_expanded_model_is_trained_further_as_it_is(run_config, loaded, tmp_path):
    first = train(run_config(), loaded())
    trained = {n: p.detach().clone() for n, p in first.model.named_parameters()}
    run = run_config(training={"output_dir": str(tmp_path / "second")})
    with pytest.warns(UserWarning, match="expanded already"):
        second = train(run, (first.model, first.tokenizer))
    before = first.history[-1]["learn/new/loss"]
    assert second.history[0]["learn/new/loss"] == pytest.approx(before, rel=1e-6)
    assert second.history[-1]["learn/new/loss"] < before
    moved = {n for n, p in second.model.named_parameters() if not torch.equal(p, trained[n])}
    assert moved and all("expanded" in name for name in moved)
    with pytest.raises(ConfigError, match="expanded model"):
        training = {"output_dir": str(tmp_path / "third")}
        train(run_config(method="full", training=training), (second.model, second.tokenizer))


def test_full_tuning_keeps_no_copy_that_nobody_asks(run_config, loaded):
    data = {"learn": [], "retain": []}
    assert set_up(run_config(method="full", data=data), loaded()).loss.reference is None
    assert set_up(run_config(method="full"), loaded()).loss.reference is not None
