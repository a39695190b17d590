"""Every method trains, is saved, resumed, loaded, exported and measured against the base it had."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.helpers import losses_of
from tests.train.test_resume import Stopped, assert_same_run, stop_after
from tests.train.ways import REHEARSED, SAVED, WAYS, base_folder, logits, run_of

from controlllm.checkpoint import (
    LoadOptions,
    export,
    inspect_folder,
    load_checkpoint,
    load_model,
    newest_checkpoint,
)
from controlllm.cli.compare import summary_of
from controlllm.common.adapters import as_base, carries_base
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.train import RunConfig, TrainResult, train
from controlllm.train.plan.estimate import model_config
from controlllm.train.setup.ready import set_up


@pytest.mark.parametrize("way", WAYS)
def test_the_way_there_and_back(
    run_config: Any, texts: Any, loaded: Any, tmp_path: Path, way: str
) -> None:
    """Train, find the base untouched and saved what trains, load that, export it, load that."""
    base = base_folder(loaded, tmp_path)
    run = run_of(run_config, texts, way, model={"model_name_or_path": base})
    result = train(run)
    first, last = (row["learn/new/loss"] for row in (result.history[0], result.history[-1]))
    assert last < first - 0.1
    assert result.history[0]["retain/old/forgetting"] == pytest.approx(0, abs=1e-5)
    assert {row["retain/old/base_loss"] for row in result.history if "retain/old/kl" in row} == {
        result.history[0]["retain/old/base_loss"]
    }
    trained = logits(result.model)
    plain = logits(loaded()[0])
    assert not torch.allclose(trained, plain, atol=0.05)
    if carries_base(result.model):
        with as_base(result.model):
            torch.testing.assert_close(logits(result.model), plain, rtol=0, atol=0)
    checkpoint = newest_checkpoint(result.output_dir)
    if run.method in SAVED:
        assert load_checkpoint(checkpoint).model["method"] == SAVED[run.method]
    again, tokenizer = load_model(checkpoint)
    torch.testing.assert_close(logits(again), trained, rtol=0, atol=0)
    full = export(again, tmp_path / "full", "full", tokenizer)
    torch.testing.assert_close(logits(load_model(full)[0]), trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(again), trained, rtol=0, atol=0)  # it was not used up
    require_only_what_trains_is_saved(result, way)


def require_only_what_trains_is_saved(result: TrainResult, way: str) -> None:
    trained = sum(p.numel() for p in result.model.parameters() if p.requires_grad)
    state = load_checkpoint(newest_checkpoint(result.output_dir))
    saved = sum(tensor.numel() for tensor in state.tensors.values())
    constant_alphas = len(result.model.blocks) if way.startswith("on top") else 0
    assert saved == trained + constant_alphas
    moments = [t for n, t in state.optimizer_tensors.items() if n.endswith("exp_avg")]
    assert sum(t.numel() for t in moments) == trained
    found = inspect_folder(result.output_dir).total
    assert (found.trained, found.trained + found.frozen) == (
        trained,
        sum(p.numel() for p in result.model.parameters()),
    )
    assert summary_of(result.output_dir).trained == trained


@pytest.mark.parametrize("way", WAYS)
def test_resumed_equals_straight(
    run_config: Any, texts: Any, loaded: Any, tmp_path: Path, monkeypatch: Any, way: str
) -> None:
    """With rehearsal, so that its KL asks the base in each step."""
    over = {} if way == "replay" else REHEARSED
    short = {"max_steps": 4, "eval_steps": 4}
    runs = [
        run_of(
            run_config, texts, way, training={"output_dir": str(tmp_path / name), **short}, **over
        )
        for name in ("straight", "resumed")
    ]
    straight = train(runs[0], loaded())
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 3)
        train(runs[1], loaded())
    torch.rand(3)
    resumed = train(runs[1], loaded())
    assert_same_run(straight.output_dir, resumed.output_dir)
    assert losses_of(resumed.history) == losses_of(straight.history)
    assert resumed.best == straight.best


@pytest.mark.parametrize("way", ["lora", "freeze", "kl", "on top"])
def test_the_trainer_of_transformers_does_the_same(
    run_config: Any, texts: Any, loaded: Any, tmp_path: Path, way: str
) -> None:
    histories = [
        train(
            run_of(
                run_config,
                texts,
                way,
                training={"backend": backend, "output_dir": str(tmp_path / backend)},
            ),
            loaded(),
        ).history
        for backend in ("native", "hf")
    ]
    assert losses_of(histories[0]) == losses_of(histories[1])


@pytest.mark.parametrize("way", ["lora", "freeze"])
def test_another_base_is_refused(
    run_config: Any, texts: Any, loaded: Any, tmp_path: Path, pico_llama: Any, way: str
) -> None:
    base = base_folder(loaded, tmp_path)
    result = train(run_of(run_config, texts, way, model={"model_name_or_path": base}))
    pico_llama(seed=5).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="but the base given is"):
        load_model(result.output_dir, LoadOptions(base=str(tmp_path / "other")))


def test_what_is_trained_further_takes_the_base_that_the_run_names(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    """The base has moved since; a base beside a whole model would not be used, and is refused."""
    base = Path(base_folder(loaded, tmp_path))
    first = train(
        run_config(
            model={"model_name_or_path": str(base)},
            training={"output_dir": str(tmp_path / "1"), "max_steps": 1},
        )
    )
    moved = base.rename(tmp_path / "moved")
    model = {"model_name_or_path": str(first.output_dir)}
    later = {"output_dir": str(tmp_path / "2"), "max_steps": 1}
    with pytest.raises(CheckpointError):
        train(run_config(model=model, training=later))
    run = run_config(model={**model, "base": str(moved)}, training=later)
    config, expansion = model_config(run)
    assert config.model_type == "llama" and expansion is not None
    assert train(run).stopped_because == "max_steps"
    with pytest.raises(ConfigError, match=r"would not be used: .* is a whole model"):
        whole = {"model_name_or_path": str(moved), "base": str(moved)}
        train(run_config(model=whole, training={"output_dir": str(tmp_path / "3")}))


def test_a_part_is_trained_further_on_what_it_was(
    run_config: Any, texts: Any, loaded: Any, tmp_path: Path
) -> None:
    """Its checkpoint names the first run's, which names the base."""
    model = {"model_name_or_path": base_folder(loaded, tmp_path)}
    first = train(
        run_of(
            run_config, texts, "freeze", model=model, training={"output_dir": str(tmp_path / "1")}
        )
    )
    second = train(
        run_config(
            method="freeze",
            freeze={"layers": [0]},
            model={"model_name_or_path": str(first.output_dir)},
            training={"output_dir": str(tmp_path / "2")},
        )
    )
    torch.testing.assert_close(
        logits(load_model(second.output_dir)[0]), logits(second.model), rtol=0, atol=0
    )


def test_the_kl_holds_the_model_to_its_base(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    """Weight 0 is full tuning; with weight the model moves less."""
    histories = {}
    for name, over in {
        "full": {"method": "full"},
        "0": {"method": "kl", "kl": {"weight": 0.0}},
        "1": {"method": "kl", "kl": {"weight": 1.0}},
    }.items():
        run = run_config(training={"output_dir": str(tmp_path / name)}, **over)
        histories[name] = train(run, loaded()).history
    kl = {name: history[-1]["retain/old/kl"] for name, history in histories.items()}
    assert kl["0"] == pytest.approx(kl["full"], rel=1e-5)
    assert kl["1"] < 0.8 * kl["0"]
    first = next(row for row in histories["1"] if "train/anchor" in row)
    assert first["train/anchor"] == pytest.approx(0, abs=1e-6)  # the model is its base yet
    assert first["train/loss"] == pytest.approx(first["train/cross_entropy"], abs=1e-6)


@pytest.mark.parametrize("dft", [False, True])
def test_the_loss_of_kl_worked_out_by_hand(run_config: Any, loaded: Any, dft: bool) -> None:
    """ASFT: mean of p(y) CE(y) + weight * KL(base || model) over the targets."""
    training = {"loss_type": "dft" if dft else "ce"}
    run = run_config(method="kl", kl={"weight": 0.3}, training=training, data={"packing": False})
    ready = set_up(run, loaded())
    base = loaded()[0]
    with torch.no_grad():
        for parameter in ready.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batches = ready.next_batches()
    counts = ready.loss.count(batches)
    loss = sum(ready.loss.micro_batch(batch, counts).item() for batch in batches)
    ready.loader.close()
    expected = 0.0
    for batch in batches:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            q, p = (m(**inputs).logits.log_softmax(-1) for m in (base, ready.model))
        for row, labels in enumerate(batch["labels"]):
            for place in range(len(labels) - 1):
                target = int(labels[place + 1])
                if target != -100:
                    at, of = p[row, place], q[row, place]
                    factor = float(at[target].exp()) if dft else 1.0
                    expected -= factor * float(at[target])
                    expected += 0.3 * float((of.exp() * (of - at)).sum())
    assert loss == pytest.approx(expected / counts.targets, rel=1e-4)


def test_freeze_trains_what_it_says(run_config: Any, loaded: Any) -> None:
    def trained(**freeze: Any) -> set[str]:
        ready = set_up(run_config(method="freeze", freeze=freeze), loaded())
        ready.loader.close()
        names = {n for n, p in ready.model.named_parameters() if p.requires_grad}
        return {".".join(name.split(".")[:3]) if "layers" in name else name for name in names}

    assert trained() == {"model.layers.3"}  # a quarter of four
    assert trained(num_layers=2) == {"model.layers.2", "model.layers.3"}
    assert trained(num_layers=-1) == {"model.layers.0"}
    assert trained(layers=[1], also_train=["head", "norm"]) == {
        "model.layers.1",
        "model.norm.weight",
        "lm_head.weight",
    }
    with pytest.raises(ConfigError, match="has 4 blocks"):
        trained(layers=[4])
    with pytest.raises(ConfigError, match="has 4 blocks"):
        trained(num_layers=5)


def test_stack_is_control_with_a_stack(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    expansion = {"structure": "stack", "divergence": "none"}
    runs = [
        run_config(method="stack", training={"output_dir": str(tmp_path / "a")}),
        run_config(expansion=expansion, training={"output_dir": str(tmp_path / "b")}),
    ]
    assert runs[0].expansion == runs[1].expansion
    assert runs[0] == RunConfig.from_dict(runs[0].to_dict())
    histories = [losses_of(train(run, loaded()).history) for run in runs]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("method", ["full", "lora", "freeze", "replay", "kl"])
def test_an_expanded_model_is_no_base(
    run_config: Any, texts: Any, loaded: Any, method: str
) -> None:
    from controlllm import expand

    model, tokenizer = loaded()
    with pytest.raises(ConfigError, match="is an expanded model; use method='control'"):
        set_up(run_of(run_config, texts, method), (expand(model, num_blocks=1), tokenizer))
