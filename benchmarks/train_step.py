"""What does a training step of the expanded model cost, in time and memory, beside its rivals?

    python benchmarks/train_step.py --data ../shared/data --output benchmarks-output

One base (random weights: speed does not ask what they say), the same packed batches of real text,
one thread, one process per way and round; the ways of a round run one after the other, ratios are
taken round by round.

| way | what runs |
|---|---|
| `native` | our loop on the expanded model (a quarter of the blocks, spread evenly) |
| `native, top`, `native, bottom` | the same with the last or the first blocks expanded |
| `native, loss in chunks`, `native, checkpointing` | the same with these settings |
| `stack` | our loop on LLaMA-Pro's structure |
| `full` | our loop, all weights of the base |
| `hf` | `transformers.Trainer` on the expanded model (our back end of it) |
| `lora` | PEFT, rank 16 on all linear layers, in plain PyTorch |
| `overhead` | our loop, after each step of which plain PyTorch makes one of the same batch |

*Time* is that of the process (`process_time`) per optimizer step, data and books included, the
median over the steps but the first two. *Memory* is the peak of the process above what it held
before the base was made, by the kernel (`VmHWM`), with freed blocks given back at once; a run of a
tiny base before it has imported and prepared whatever there is. *FLOPs* are those that are really
computed (`controlllm.train.observe.flops`); the *limit* is their time at the rate of a large matrix
product, measured in the same process. *Overhead* is what a step of the loop takes beyond forward,
backward, clipping and AdamW in plain PyTorch, the median over pairs of steps.
"""

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from data_rows import machine, memory, real_texts, reset_peak, shown, write_rows

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

WAYS = (
    "native",
    "native, top",
    "native, bottom",
    "native, loss in chunks",
    "native, checkpointing",
    "stack",
    "full",
    "hf",
    "lora",
    "overhead",
)
STEPS, PAIRS, WARM_UP, ROWS, LENGTH = 7, 14, 2, 2, 256
M_MMAP_THRESHOLD = -3


def settings(way: str, layers: int) -> dict[str, Any]:
    """What a way has of its own in its run config."""
    blocks = layers // 4
    return {
        "native, top": {"expansion": {"layers": list(range(layers - blocks, layers))}},
        "native, bottom": {"expansion": {"layers": list(range(blocks))}},
        "native, loss in chunks": {"training": {"loss_chunk_size": 256}},
        "native, checkpointing": {"training": {"gradient_checkpointing": True}},
        "stack": {"expansion": {"structure": "stack", "divergence": "none", "num_blocks": blocks}},
        "full": {"method": "full"},
        "hf": {"training": {"backend": "hf"}, "expansion": {"num_blocks": blocks}},
        "overhead": {"training": {"max_steps": PAIRS}, "expansion": {"num_blocks": blocks}},
    }.get(way, {"expansion": {"num_blocks": blocks}})


def make_base(options: argparse.Namespace) -> tuple[Any, Any]:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(options.data / "tokenizers/minimind6400")
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=options.width * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        num_key_value_heads=options.width // 128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config), tokenizer


def run_of(options: argparse.Namespace, way: str, folder: str) -> Any:
    from controlllm.train import RunConfig
    from controlllm.train.config.config_io import merge

    values = {
        "model": {"device": "cpu"},
        "data": {
            "train": [{"path": str(Path(folder).parent / "texts.jsonl")}],
            "max_length": LENGTH,
        },
        "training": {
            "output_dir": folder,
            "max_steps": STEPS,
            "per_device_train_batch_size": ROWS,
            "save_steps": 10**6,
        },
        "logging": {"logging_steps": 1, "report_to": ["jsonl"]},
    }
    return RunConfig.from_dict(merge(values, settings(way, options.layers)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process."""
    import ctypes

    import torch

    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    with tempfile.TemporaryDirectory() as folder:
        write_texts(options.data, Path(folder))
        take_steps(
            argparse.Namespace(**{**vars(options), "layers": 4, "width": 128}), f"{folder}/tiny"
        )
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        reset_peak()
        before = memory("VmRSS")
        found = take_steps(options, f"{folder}/run")
    return {**found, "mib": memory("VmHWM") - before}


def write_texts(data: Path, folder: Path) -> None:
    """The rows that all ways read."""
    write_rows(folder / "texts.jsonl", real_texts(data))


def take_steps(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Train for some steps: seconds of each, and what else was seen."""
    base, tokenizer = make_base(options)
    run = run_of(options, options.measure, folder)
    if options.measure == "lora":
        found = lora_steps(run, base, tokenizer)
    else:
        found = loop_steps(run, base, tokenizer, pairs=options.measure == "overhead")
    sizes = [(p.numel(), p.requires_grad) for p in found.pop("model").parameters()]
    return {
        "parameters": sum(n for n, _ in sizes),
        "trained": sum(n for n, on in sizes if on),
        **found,
    }


def plain_step(model: Any, batch: dict[str, Any], optimizer: Any) -> None:
    """A step that anyone would write."""
    import torch

    from controlllm.data import model_inputs

    model(**model_inputs(batch)).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def lora_steps(run: Any, base: Any, tokenizer: Any) -> dict[str, Any]:
    import torch
    from peft import LoraConfig, get_peft_model

    from controlllm.data import TrainLoader
    from controlllm.train.setup.model import load_base

    base, tokenizer = load_base(run, (base, tokenizer))
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules=linear))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-5)
    batches = list(islice(TrainLoader(run.data, tokenizer, ROWS, 42), STEPS))
    times = []
    for batch in batches:
        begin = time.process_time()
        plain_step(model, batch, optimizer)
        times.append(time.process_time() - begin)
    return {"model": model, "seconds": statistics.median(times[WARM_UP:])}


def loop_steps(run: Any, base: Any, tokenizer: Any, pairs: bool) -> dict[str, Any]:
    """Our loop, its code as it is; with a plain step after each of its own, if asked for."""
    from controlllm.train import train
    from controlllm.train.loops.native import NativeLoop
    from controlllm.train.record.recorder import Recorder

    times, plain, batches = list[float](), list[float](), list[Any]()
    begin = 0.0
    start, after_step, step = Recorder.start, Recorder.after_step, NativeLoop.step

    def watched_start(self: Any, ready: Any) -> None:
        nonlocal begin
        start(self, ready)
        begin = time.process_time()

    def watched_step(self: Any, given: list[Any]) -> Any:
        batches[:] = given
        return step(self, given)

    def watched_after_step(self: Any, *args: Any) -> None:
        nonlocal begin
        after_step(self, *args)
        times.append(time.process_time() - begin)
        if pairs:
            begin = time.process_time()
            plain_step(self.state.model, batches[0], self.state.ready.optimizer)
            plain.append(time.process_time() - begin)
        begin = time.process_time()

    watched = {
        (Recorder, "start"): watched_start,
        (Recorder, "after_step"): watched_after_step,
        (NativeLoop, "step"): watched_step,
    }
    with ExitStack() as patches:
        for (owner, name), function in watched.items():
            patches.enter_context(patch.object(owner, name, function))
        result = train(run, (base, tokenizer))
    row = [row for row in result.history if "train/loss" in row][-1]
    found = {
        "model": result.model,
        "seconds": statistics.median(times[WARM_UP:]),
        "limit": row["train/hfu"] * row["train/step_seconds"],
        "gflop": 1e3 * row["train/tflops"] * row["train/step_seconds"],
    }
    if pairs:
        both = zip(times[WARM_UP:], plain[WARM_UP:], strict=True)
        found["overhead"] = statistics.median(a / b - 1 for a, b in both)
    return found


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    text = "| way | trained / all, M | s a step | to native | to full | GFLOP | time to the limit |"
    text += " MiB | to full |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    for way, runs in results.items():
        if way == "overhead":
            continue
        cells = [f"{runs[0]['trained'] / 1e6:.1f} / {runs[0]['parameters'] / 1e6:.1f}"]
        cells.append(shown([run["seconds"] for run in runs]))
        cells += [ratio(runs, results, rival, "seconds") for rival in ("native", "full")]
        cells.append(f"{runs[0]['gflop']:,.0f}" if "gflop" in runs[0] else "")
        limits = [run["seconds"] / run["limit"] for run in runs if "limit" in run]
        cells.append(shown(limits) if limits else "")
        cells += [shown([run["mib"] for run in runs], 0), ratio(runs, results, "full", "mib")]
        text += f"| {way} | {' | '.join(cells)} |\n"
    if "overhead" in results:
        percent = [100 * run["overhead"] for run in results["overhead"]]
        text += f"\nOverhead of the loop beside plain PyTorch: {shown(percent, 1)} %.\n"
    return text


def ratio(
    runs: list[dict[str, Any]], results: dict[str, list[dict[str, Any]]], rival: str, what: str
) -> str:
    """To a rival's, round by round."""
    if rival not in results:
        return ""
    return shown([a[what] / b[what] for a, b in zip(runs, results[rival], strict=True)])


def add_shape(parser: argparse.ArgumentParser, layers: int) -> None:
    """The options for the base."""
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data")
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    parser.add_argument("--layers", type=int, default=layers)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=6400)


def measured_apart(*words: str) -> dict[str, Any]:
    """What this script prints last in a process of its own, with `--measure` and these words."""
    command = [sys.executable, *sys.argv, "--measure", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{', '.join(words)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def by_processes(call: Callable[[int, Path], None], ranks: int, data: Path, folder: Path) -> None:
    """Forked processes, each of which gets its rank and a folder with the rows."""
    write_texts(data, folder)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=call, args=(rank, folder)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a process failed; its own messages say why")


@contextmanager
def gloo(rank: int, ranks: int, folder: Path) -> Iterator[None]:
    """Inside, forked processes are one group; a single one needs none."""
    import torch.distributed as dist

    if ranks == 1:
        yield
        return
    place = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=ranks)
    yield
    dist.destroy_process_group()


def write_record(folder: Path, name: str, text: str, results: Any) -> None:
    """The table for people, and all numbers behind it."""
    record = {"machine": machine(), "command": sys.argv, "results": results}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shape(parser, layers=8)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print("\n" + json.dumps(measure(options)))
        return
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(options.repetitions):
        for way in options.ways:
            results[way].append(measured_apart(way))
        print(f"round {number + 1} of {options.repetitions} done", flush=True)
    print(table(results))
    write_record(options.output, "train-step", table(results), results)


if __name__ == "__main__":
    main()
