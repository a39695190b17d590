"""What lies where: gradients and state for what trains only, weights in parts, read in parts."""

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.test_training import losses, run_of
from tests.processes import run_ranks, values
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from controlllm.checkpoint import load_checkpoint, load_model, newest_checkpoint
from controlllm.train import train
from controlllm.train.loops.native import NativeLoop
from controlllm.train.parallel import open_world
from controlllm.train.parallel.sharding import sharding_units
from controlllm.train.record.recorder import Recorder
from controlllm.train.setup.ready import set_up


def local_bytes(tensors: Any) -> int:
    """Of this process's parts."""
    parts = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(part.numel() * part.element_size() for part in parts)


@pytest.mark.parametrize("ranks", [2, 4])
def test_gradients_and_optimizer_state_exist_for_what_trains_only(
    run_config: Any, loaded: Any, tmp_path: Path, ranks: int
) -> None:
    def count(rank: int) -> dict[str, int]:
        run = run_of(run_config, tmp_path / "run")
        with open_world(run.parallel, "cpu") as world:
            ready = set_up(run, loaded(), world)
            loop = NativeLoop(ready, Recorder(ready, None))
            loop.accumulate(ready.next_batches())
            parameters = list(ready.model.parameters())
            trained = [p for p in parameters if p.requires_grad]
            gradients = [p.grad for p in parameters if p.grad is not None]
            ready.optimizer.step()
            state = [
                value
                for values in ready.optimizer.state.values()
                for value in values.values()
                if value.ndim
            ]
            units = len(list(sharding_units(ready.model)))
            return {
                "all": local_bytes(parameters),
                "trained": local_bytes(trained),
                "gradients": local_bytes(gradients),
                "state": local_bytes(state),
                "trained of all ranks": sum(p.numel() * p.element_size() for p in trained),
                "units": units,
            }

    counts = values(run_ranks(count, ranks, tmp_path / "processes"))
    for count_of_rank in counts:
        assert count_of_rank["gradients"] == count_of_rank["trained"]
        assert count_of_rank["state"] == 2 * count_of_rank["trained"]
        # Two of three layers are expanded: frozen, copy and interpolator each, and another.
        assert count_of_rank["units"] == 7
    total = counts[0]["trained of all ranks"]
    assert sum(count_of_rank["trained"] for count_of_rank in counts) == total
    assert max(count_of_rank["trained"] for count_of_rank in counts) < 1.2 * total / ranks


def write_base(folder: Path, tokenizer: Any, **config: Any) -> None:
    settings = {
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **config,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder, max_shard_size="100KB")
    tokenizer.save_pretrained(folder)


ENDS = {"expansion": {"expand_ends": True, "interpolator": "dlerp"}}
BY_ZERO3 = {"parallel": {"strategy": "zero3"}, "training": {"backend": "hf"}}
BF16 = {"parallel": {"strategy": "zero3"}, "training": {"backend": "hf", "bf16": True}}
TWO_STEPS = {"max_steps": 2, "eval_steps": 2, "save_steps": 2}
UNPACKED = {"packing": False}
HPZ = {"zero_optimization": {"zero_hpz_partition_size": 2, "stage3_prefetch_bucket_size": "auto"}}


OWN_TEXT = {"own_text": {"measure": True, "num_sequences": 8}}
"""Which the first process loads the base whole for."""

READ_IN_PARTS: dict[str, dict[str, Any]] = {
    "stack": {"expansion": {"structure": "stack"}},
    "ends and gates": ENDS,
    "full": {"method": "full"},
    "own text": OWN_TEXT,
    "zero3, own text": {**BY_ZERO3, **OWN_TEXT},
    "zero3, stack, bf16": {**BF16, "expansion": {"structure": "stack"}},
    "zero3, ends and gates, hpZ": {
        **BY_ZERO3,
        **ENDS,
        "parallel": {"strategy": "zero3", "deepspeed": HPZ},
    },
    "zero3, full": {**BY_ZERO3, "method": "full"},
}
TIED = ("ends and gates", "zero3, full")


@pytest.mark.parametrize("over", READ_IN_PARTS)
def test_weights_read_in_parts_are_the_weights(
    run_config: Any, pico_tokenizer: Any, tmp_path: Path, over: str
) -> None:
    """The same run with a model that each process loads whole, and that none does."""
    write_base(tmp_path / "base", pico_tokenizer, tie_word_embeddings=over in TIED)
    model = {"model_name_or_path": str(tmp_path / "base")}
    training = {**TWO_STEPS, **READ_IN_PARTS[over].get("training", {})}
    parts, whole = (
        run_of(
            run_config,
            tmp_path / name,
            model=model,
            **{**READ_IN_PARTS[over], "training": training},
        )
        for name in ("parts", "whole")
    )

    def both(rank: int) -> list[Any]:
        loaded = load_model(tmp_path / "base")
        return [train(parts).history, train(whole, loaded).history]

    histories = values(run_ranks(both, 2, tmp_path / "processes"))[0]
    assert losses(histories[0]) == losses(histories[1])
    a, b = (load_checkpoint(newest_checkpoint(tmp_path / name)) for name in ("parts", "whole"))
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())
    fingerprints = [state.model["config"].get("base", {}).get("fingerprint") for state in (a, b)]
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize("over", [{}, BY_ZERO3], ids=["fsdp", "zero3"])
def test_a_broken_file_is_named(
    run_config: Any, pico_tokenizer: Any, tmp_path: Path, over: dict[str, Any]
) -> None:
    write_base(tmp_path / "base", pico_tokenizer)
    file = sorted((tmp_path / "base").glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-8])
    model = {"model_name_or_path": str(tmp_path / "base")}
    run = run_of(run_config, tmp_path / "run", model=model, **over)
    for outcome in run_ranks(lambda rank: train(run), 2, tmp_path / "processes"):
        assert outcome.error is not None and outcome.error.startswith("CheckpointError: ")
        assert f"{file.name} is broken or truncated" in outcome.error


M_MMAP_THRESHOLD = -3


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most bytes of memory that this process holds within the block, above those at its start.

    Freed blocks go back to the system at once, or the peak would be malloc's, not ours.
    """
    libc, done = ctypes.CDLL(None), threading.Event()

    def trim() -> None:
        while not done.wait(0.01):
            libc.malloc_trim(0)

    def now(name: str) -> int:
        return 1024 * int(Path("/proc/self/status").read_text().partition(name)[2].split()[0])

    gc.collect()
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)
    libc.malloc_trim(0)
    thread = threading.Thread(target=trim)
    thread.start()
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    before, found = now("VmRSS:"), [0]
    try:
        yield found
    finally:
        found[0] = now("VmHWM:") - before
        done.set()
        thread.join()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("over", [{}, BY_ZERO3], ids=["fsdp", "zero3"])
def test_no_process_ever_holds_the_whole_model(
    run_config: Any, pico_tokenizer: Any, tmp_path: Path, over: dict[str, Any]
) -> None:
    """Peak memory that building adds, on each of four processes, to the size of the files."""
    shape = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 16}
    write_base(tmp_path / "small", pico_tokenizer)
    write_base(tmp_path / "base", pico_tokenizer, **shape)
    size = sum(file.stat().st_size for file in (tmp_path / "base").glob("*.safetensors"))

    def peak_of(rank: int) -> float:
        def added(name: str) -> float:
            model = {"model_name_or_path": str(tmp_path / name)}
            # Without a first forward pass, which gathers what it needs.
            run = run_of(run_config, tmp_path / "run", model=model, data=UNPACKED, **over)
            with open_world(run.parallel, "cpu") as world, peak_memory() as peak:
                set_up(run, None, world)
            return peak[0] / size

        added("small")  # Once for what is imported and set up.
        return added("base")

    # A quarter of the weights, two copies of sixteen, and what is gathered for a moment.
    assert max(values(run_ranks(peak_of, 4, tmp_path / "processes", timeout=200))) < 0.5
