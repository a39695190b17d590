"""A quantised base in parts on several processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.test_training import WAYS, losses, require_close, run_of, train_by
from tests.processes import run_ranks, values

from controlllm.checkpoint import load_checkpoint

SAVED = {"save_steps": 100, "eval_steps": 100, "max_steps": 3}


@pytest.mark.parametrize(("kind", "ways"), [("int8", ["fsdp 2", "hsdp 2x2"]), ("nf4", ["ddp 2"])])
def test_every_way_trains_beside_the_same_quantised_base(
    kind: str, ways: list[str], run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    def by(ranks: int, folder: str, parallel: dict[str, Any], **training: Any) -> list[Any]:
        run = run_of(
            run_config,
            tmp_path / folder,
            parallel=parallel,
            training={**SAVED, **training},
            model={"quantize_base": kind},
        )
        return train_by(run, loaded, ranks, tmp_path / "processes")

    [expected] = by(1, "alone", {})
    weights = load_checkpoint(tmp_path / "alone" / "checkpoint-3").tensors
    for name in ways:
        ranks, parallel = WAYS[name]
        for history in by(ranks, name, parallel):
            assert losses(history) == pytest.approx(losses(expected), rel=2e-4), name
        state = load_checkpoint(tmp_path / name / "checkpoint-3")
        require_close(state.tensors, weights)
    base = [load_checkpoint(tmp_path / n / "checkpoint-3").model for n in ("alone", ways[0])]
    assert base[0]["config"]["base"] == base[1]["config"]["base"]


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_in_bfloat16_codes_and_scales_are_gathered_as_they_are(
    kind: str, run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    def by(ranks: int, base: str | None) -> list[float]:
        run = run_of(
            run_config,
            tmp_path / f"{ranks} {base}",
            training={**SAVED, **bfloat16, "gradient_checkpointing": True},
            model={"quantize_base": base},
        )
        history = train_by(run, loaded, ranks, tmp_path / "processes")[0]
        return [row[name] for row in history for name in names if name in row]

    bfloat16 = {"bf16": True, "learning_rate": 1e-3}
    names = ("train/loss", "learn/new/loss", "retain/old/loss")
    found, expected, unquantised = by(2, kind), by(1, kind), by(1, None)
    assert found == pytest.approx(expected, rel=0.01)
    assert unquantised != pytest.approx(expected, rel=1e-4)


def test_each_process_holds_its_rows_of_the_codes(pico_llama: Any, tmp_path: Path) -> None:
    """Also where rows do not divide by the processes."""
    from controlllm import ExpansionConfig, expand
    from controlllm.common.distributed import Ranks
    from controlllm.train.config.parallel_config import ParallelConfig
    from controlllm.train.parallel import World, shard_model
    from controlllm.train.setup.quantize import quantize_base

    def ranked(rank: int) -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh("cpu", (3,), mesh_dim_names=("shard",))
        model = expand(pico_llama(intermediate_size=50), ExpansionConfig(num_blocks=2))
        quantize_base(model, "int8")
        ids = torch.arange(24).view(1, 24)
        with torch.no_grad():
            expected = model(input_ids=ids).logits
        shard_model(model, World(Ranks.current(60), ParallelConfig(), mesh))
        packed = {
            name: tuple(p.to_local().shape)  # type: ignore[attr-defined]
            for name, p in model.named_parameters()
            if p.dtype is torch.uint8 and name.endswith("up_proj.weight")
        }
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=ids).logits, expected)
        return packed

    by_rank = values(run_ranks(ranked, 3, tmp_path))
    for rank, packed in enumerate(by_rank):
        assert len(packed) == 4
        # 50 rows by three processes; a row has 32 codes and 4 bytes of its scale.
        assert set(packed.values()) == {((17, 17, 16)[rank], 32 + 4)}


@pytest.fixture
def folder(pico_llama: Any, pico_tokenizer: Any, tmp_path: Path) -> Path:
    """A base in rows of whole blocks; others bitsandbytes gets wrong on CPUs."""
    pico_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    pico_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_four_bits_of_bitsandbytes_are_shared(
    folder: Path, run_config: Any, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")

    def by(ranks: int, name: str, parallel: dict[str, Any], **training: Any) -> list[Any]:
        run = run_of(
            run_config,
            tmp_path / name,
            parallel=parallel,
            training={**SAVED, **training},
            model={"quantize_base": "bnb_nf4_double", "model_name_or_path": str(folder)},
        )
        return train_by(run, lambda: None, ranks, tmp_path / "processes")

    [expected] = by(1, "alone", {})
    weights = load_checkpoint(tmp_path / "alone" / "checkpoint-3")
    for name, backend in (("fsdp 2", "native"), ("ddp 2", "hf")):
        ranks, parallel = WAYS[name]
        for history in by(ranks, name, parallel, backend=backend):
            assert losses(history) == pytest.approx(losses(expected), rel=2e-4), name
        state = load_checkpoint(tmp_path / name / "checkpoint-3")
        assert state.model["config"]["base"] == weights.model["config"]["base"]
        require_close(state.tensors, weights.tensors)


def test_what_cannot_be_cut_is_refused_at_the_start(
    folder: Path, run_config: Any, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, TorchAoConfig

    from controlllm.checkpoint import find_tokenizer
    from controlllm.common.errors import ConfigError
    from controlllm.common.quiet import require_package
    from controlllm.train import train

    def by_torchao() -> Any:
        torchao = require_package("torchao.quantization", "a test")
        settings = TorchAoConfig(torchao.Int8WeightOnlyConfig())
        base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings)
        return base, find_tokenizer(str(folder))

    def refused(rank: int) -> list[str]:
        found = []
        for kind, loaded in (("bnb_int8", None), (None, by_torchao())):
            model = {"quantize_base": kind, "model_name_or_path": str(folder)}
            run = run_of(run_config, tmp_path / f"run {kind}", model=model)
            try:
                train(run, loaded)
            except ConfigError as error:
                found.append(str(error))
        return found

    for messages in values(run_ranks(refused, 2, tmp_path / "processes", timeout=100)):
        for kind, message in zip(("bnb_int8", "torchao Int8Tensor"), messages, strict=True):
            assert f"fsdp cannot share weights that are quantised as {kind}: they can" in message
