"""Every method trains, is saved, resumed, loaded, exported and measured against the base it had."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.laws.architectures import VOCAB, make_base
from tests.train.helpers import losses_of
from tests.train.test_resume import Stopped, assert_same_run, stop_after

from controlllm.checkpoint import (
    LoadOptions,
    export,
    inspect_folder,
    load_checkpoint,
    load_model,
    newest_checkpoint,
)
from controlllm.cli import main
from controlllm.cli.compare import summary_of
from controlllm.common.adapters import as_base, carries_base, has_adapters
from controlllm.common.errors import CheckpointError, ConfigError, ModelError
from controlllm.evaluate import Reference
from controlllm.expansion import ExpansionConfig
from controlllm.train import RunConfig, train
from controlllm.train.bench import make_bench
from controlllm.train.methods import METHODS
from controlllm.train.quantize import QuantisedLinear

LORA = {"method": "lora", "peft": {"r": 4}}
ON_TOP = {"peft": {"type": "lora", "r": 4}, "expansion": {"num_blocks": 1, "layers": [1]}}
REHEARSED = {"rehearsal": {"num_sequences": 6, "share": 0.3}}
WAYS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "dora": {"method": "lora", "peft": {"type": "dora", "r": 2, "dropout": 0.1}},
    "oft": {"method": "lora", "peft": {"type": "oft", "block_size": 8}},
    "freeze": {"method": "freeze", "freeze": {"num_layers": 1, "also_train": ["norm"]}},
    "stack": {"method": "stack"},
    "replay": {"method": "replay"},
    "kl": {"method": "kl"},
    "on top": ON_TOP,
    "on top, oft": {**ON_TOP, "peft": {"type": "oft", "block_size": 8}},
}
SAVED = {"lora": "adapters", "freeze": "part", "stack": "control", "replay": "full", "kl": "full"}


def run_of(run_config: Any, texts: dict[str, str], way: str, **over: Any) -> RunConfig:
    """A run of one of the ways; replay gets old data."""
    values = copy.deepcopy(WAYS.get(way, {"method": way}))
    if way == "replay":
        values["data"] = {"replay": [{"path": texts["old"]}], "replay_share": 0.25}
    return run_config(**values, **over)


def base_folder(loaded: Any, tmp_path: Path) -> str:
    """The pico base as a folder, so that checkpoints can name it."""
    folder = tmp_path / "base"
    if not folder.exists():
        model, tokenizer = loaded()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 40).view(1, -1)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("way", WAYS)
def test_the_way_there_and_back(
    run_config: Any, texts: Any, loaded: Any, tmp_path: Path, way: str
) -> None:
    """Train, find the base untouched, load the checkpoint, export it, load that."""
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


@pytest.mark.parametrize("way", WAYS)
def test_only_what_trains_is_saved(
    run_config: Any, texts: Any, loaded: Any, tmp_path: Path, way: str
) -> None:
    run = run_of(run_config, texts, way, training={"max_steps": 1, "warmup_steps": 0})
    result = train(run, loaded())
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
    runs = [
        run_of(run_config, texts, way, training={"output_dir": str(tmp_path / name)}, **over)
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


def test_peft_reads_what_method_lora_saves(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    run = run_config(model={"model_name_or_path": base_folder(loaded, tmp_path)}, **LORA)
    result = train(run)
    expected = logits(result.model)
    model, tokenizer = load_model(result.output_dir)
    adapter = export(model, tmp_path / "adapter", "adapter", tokenizer)
    for folder in (newest_checkpoint(result.output_dir), adapter):
        theirs = PeftModel.from_pretrained(loaded()[0], folder)
        torch.testing.assert_close(logits(theirs), expected, rtol=0, atol=0)
    torch.testing.assert_close(logits(load_model(adapter)[0]), expected, rtol=0, atol=0)
    theirs.save_pretrained(tmp_path / "theirs")  # and the other way: what PEFT writes is read
    options = LoadOptions(base=base_folder(loaded, tmp_path))
    ours, _ = load_model(tmp_path / "theirs", options)
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=0)


@pytest.mark.parametrize("way", ["lora", "freeze"])
def test_another_base_is_refused(
    run_config: Any, texts: Any, loaded: Any, tmp_path: Path, pico_llama: Any, way: str
) -> None:
    base = base_folder(loaded, tmp_path)
    result = train(run_of(run_config, texts, way, model={"model_name_or_path": base}))
    pico_llama(seed=5).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="but the base given is"):
        load_model(result.output_dir, LoadOptions(base=str(tmp_path / "other")))


def test_trained_adapters_are_trained_further(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    """By the same method; another one would take the adapters for the base."""
    model = {"model_name_or_path": base_folder(loaded, tmp_path)}
    first = train(run_config(model=model, training={"output_dir": str(tmp_path / "1")}, **LORA))
    model = {"model_name_or_path": str(first.output_dir)}
    training = {"output_dir": str(tmp_path / "2")}
    with pytest.raises(ConfigError, match=r"has adapters; use method='lora'"):
        train(run_config(model=model, method="full", training=training))
    second = train(run_config(model=model, training=training, method="lora"))
    start, end = (row["learn/new/loss"] for row in (second.history[0], second.history[-1]))
    assert start == pytest.approx(first.history[-1]["learn/new/loss"])
    assert end < start
    assert second.history[0]["retain/old/base_loss"] == first.history[0]["retain/old/base_loss"]


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


def test_alpha_0_is_the_base_and_any_other_keeps_the_adapters(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    model = {"model_name_or_path": base_folder(loaded, tmp_path)}
    result = train(run_config(model=model, **ON_TOP))
    plain, model = logits(loaded()[0]), result.model
    model.set_alpha(0)
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    model.save_sidecar(tmp_path / "at-0")
    at_0 = load_model(tmp_path / "at-0", LoadOptions(base=base_folder(loaded, tmp_path)))[0]
    torch.testing.assert_close(logits(at_0), plain, rtol=0, atol=0)
    model.set_alpha(1e-6)
    nearly = logits(model)
    assert not torch.allclose(nearly, plain, atol=1e-2)  # of the adapters alone
    with model.disable_expansion():
        torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    torch.testing.assert_close(logits(model), nearly, rtol=0, atol=0)
    collapsed = export(model, tmp_path / "collapsed", "collapsed")
    torch.testing.assert_close(
        logits(load_model(collapsed, LoadOptions(tokenizer=base_folder(loaded, tmp_path)))[0]),
        nearly,
        rtol=1e-3,
        atol=1e-3,
    )
    base = model.unload()
    assert not has_adapters(base)
    torch.testing.assert_close(logits(base), plain, rtol=0, atol=0)


def test_adapters_go_on_frozen_blocks_alone(run_config: Any, loaded: Any) -> None:
    bench = make_bench(run_config(**ON_TOP), loaded())
    adapted = {name for name, p in bench.model.named_parameters() if "lora_" in name}
    bench.loader.close()
    assert adapted and not any(".1." in name.split("layers")[1][:3] for name in adapted)
    for layers, words in (([1], "not among them"), ([7], "not among them")):
        with pytest.raises(ConfigError, match=words):
            make_bench(
                run_config(**{**ON_TOP, "peft": {"type": "lora", "layers": layers}}), loaded()
            )
    with pytest.raises(ConfigError, match="not expanded, which are"):
        make_bench(run_config(peft={"type": "lora"}, expansion={"num_blocks": 4}), loaded())
    with pytest.raises(ConfigError, match="no linear layer"):
        make_bench(run_config(method="lora", peft={"target_modules": ["q"]}), loaded())
    with pytest.raises(ConfigError, match="does not divide"):
        make_bench(run_config(method="lora", peft={"type": "oft", "block_size": 7}), loaded())


def test_the_first_values_of_adapters_are_the_seeds_alone(run_config: Any, loaded: Any) -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(seed + 1)
        model, tokenizer = loaded()
        run = run_config(training={"seed": seed}, **LORA)
        bench = make_bench(run, (model, tokenizer))
        bench.loader.close()
        return {n: p.detach() for n, p in model.named_parameters() if "lora_A" in n}

    a, b, c = start(1), start(1), start(2)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a)


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
    run = run_config(method="kl", kl={"weight": 0.3, "dft": dft}, data={"packing": False})
    bench = make_bench(run, loaded())
    base = loaded()[0]
    with torch.no_grad():
        for parameter in bench.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batches = bench.next_batches()
    counts = bench.loss.count(batches)
    loss = sum(bench.loss.micro_batch(batch, counts).item() for batch in batches)
    bench.loader.close()
    expected = 0.0
    for batch in batches:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            q, p = (m(**inputs).logits.log_softmax(-1) for m in (base, bench.model))
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
        bench = make_bench(run_config(method="freeze", freeze=freeze), loaded())
        bench.loader.close()
        names = {n for n, p in bench.model.named_parameters() if p.requires_grad}
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


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "stack", "expansion": {"divergence": "cosine"}}, "divergence='cosine' does not go"),
    ({"method": "stack", "expansion": {"structure": "hybrid"}}, "structure='hybrid' does not go"),
    ({"method": "stack", "expansion": {"interpolator": "dlerp"}}, "interpolator='dlerp' does not"),
    ({"method": "stack", "preset": "retain"}, "does not go together with method='stack'"),
    ({"method": "replay"}, "needs old data"),
    ({"method": "kl", "training": {"loss_chunk_size": 8}}, "loss_chunk_size=8 does not go"),
    ({"method": "full", "peft": {"type": "lora"}}, "needs method='lora', or 'control'"),
    ({"method": "lora", "model": {"quantize_base": "int8"}}, "needs method='control'"),
    ({"method": "lora", "parallel": {"tensor_size": 2}}, "peft.type=lora does not go together"),
    ({"peft": {"type": "oft"}, "parallel": {"tensor_size": 2}}, "peft.type=oft does not go"),
    (
        {"peft": {"type": "dora"}, "model": {"quantize_base": "int8"}},
        "does not go together with peft.type='dora'",
    ),
    ({"peft": {"type": "lara"}}, "Did you mean 'lora'"),
    ({"peft": {"r": 0}}, "must be at least 1"),
    ({"peft": {"dropout": 1.0}}, "below 1"),
    ({"peft": {"layers": []}}, "is empty"),
    ({"freeze": {"num_layers": 0}}, "no block trains"),
    ({"freeze": {"num_layers": 1, "layers": [1]}}, "exclude one another"),
    ({"kl": {"weight": -1.0}}, "out of range"),
] + [
    ({"method": name, "training": {"alpha_sampling": [0.2, 0.8]}}, "has no alpha")
    for name in ("full", "lora", "freeze", "kl")
]


@pytest.mark.parametrize(("over", "words"), REFUSED, ids=str)
def test_what_does_not_go_together_is_refused(run_config: Any, over: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run_config(**over)


@pytest.mark.parametrize("method", ["full", "lora", "freeze", "replay", "kl"])
def test_an_expanded_model_is_no_base(
    run_config: Any, texts: Any, loaded: Any, method: str
) -> None:
    from controlllm import expand

    model, tokenizer = loaded()
    with pytest.raises(ConfigError, match="is an expanded model; use method='control'"):
        make_bench(run_of(run_config, texts, method), (expand(model, num_blocks=1), tokenizer))


def test_every_method_of_the_config_is_there() -> None:
    from typing import get_args

    from controlllm.train.method_config import Method

    assert METHODS.names() == sorted(get_args(Method))


def test_a_quantised_base_with_adapters(run_config: Any, loaded: Any, tmp_path: Path) -> None:
    """The frozen layers inside adapted ones are quantised, too."""
    pytest.importorskip("torchao")
    run = run_config(
        model={"quantize_base": "int8", "model_name_or_path": base_folder(loaded, tmp_path)},
        **ON_TOP,
    )
    result = train(run)
    assert result.history[-1]["learn/new/loss"] < result.history[0]["learn/new/loss"] - 0.1
    adapted = [m for m in result.model.modules() if hasattr(m, "lora_A")]
    assert adapted and all(isinstance(m.base_layer, QuantisedLinear) for m in adapted)
    assert has_adapters(load_model(result.output_dir)[0])


@pytest.mark.parametrize("arch", ["gpt2", "qwen3-moe", "llama-tied"])
def test_lora_on_other_architectures(arch: str) -> None:
    from controlllm.expansion.adapter_config import AdapterConfig
    from controlllm.expansion.fingerprint import fingerprint
    from controlllm.expansion.peft import add_adapters

    model = make_base(arch)
    ids = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    before, name = model(input_ids=ids).logits, fingerprint(model)
    add_adapters(model, AdapterConfig(r=2))
    assert torch.equal(model(input_ids=ids).logits, before)
    assert fingerprint(model) == name
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert not torch.allclose(model(input_ids=ids).logits, before, atol=1e-2)
    torch.testing.assert_close(Reference(model).forward(input_ids=ids), before, rtol=0, atol=0)
    with pytest.raises(ModelError, match="adapters already"):
        add_adapters(model, AdapterConfig())


def test_commands_on_adapters(
    run_config: Any, loaded: Any, texts: Any, tmp_path: Path, capsys: Any
) -> None:
    """eval finds the base inside, inspect and compare read files, export writes both forms."""
    base = base_folder(loaded, tmp_path)
    folder = tmp_path / "runs"
    for way in ("lora", "kl"):
        training = {"output_dir": str(folder / way), "max_forgetting": 100.0}
        train(run_of(run_config, texts, way, model={"model_name_or_path": base}, training=training))
    run = str(folder / "lora")
    assert main(["eval", run]) == 0
    assert "base loss" in capsys.readouterr().out
    assert main(["inspect", run]) == 0
    out = capsys.readouterr().out
    assert "adapter" in out and base in out
    for form in ("adapter", "full"):
        assert main(["export", run, str(tmp_path / form), "--form", form]) == 0
        assert main(["eval", str(tmp_path / form), "--files", texts["new_heldout"]]) == 0
    assert main(["export", str(folder / "kl"), str(tmp_path / "x"), "--form", "adapter"]) == 2
    assert "needs a base with adapters" in capsys.readouterr().err
    assert (
        main(["compare", str(folder), "--best", "true", "--output", str(tmp_path / "o.json")]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and {line.split()[1] for line in lines[2:]} == {"lora", "kl"}
    for way in ("lora", "kl"):
        assert main(["plan", "--config", str(folder / way / "config.yaml")]) == 0
        assert way in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "full")]) == 2


def test_the_default_stack_needs_no_settings() -> None:
    assert RunConfig(method="stack").expansion == ExpansionConfig(
        structure="stack", divergence="none"
    )
