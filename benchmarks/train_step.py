"""What does a training step of the expanded model cost, in time and memory, beside its rivals?

    python benchmarks/train_step.py --data ../shared/data --output benchmarks-output

One base (random weights: speed does not ask what they say), the same packed batches of real text,
one thread, one process per way and round; the ways of a round run one after the other, ratios are
taken round by round.

| way | what runs |
|---|---|
| `bare` | forward, backward, clip, AdamW on the expanded model, in plain PyTorch |
| `native` | our loop on it: data, losses, clip, checks, step, books, log |
| `hf` | `transformers.Trainer` on it (our back end of it) |
| `full` | our loop, all weights of the base |
| `lora` | PEFT, rank 16 on all linear layers, in plain PyTorch |
| `stack` | our loop on LLaMA-Pro's structure |
| `native, loss in chunks`, `native, checkpointing` | our loop with these settings |

*Time* is that of the process (`process_time`) per optimizer step, the median over the steps but the
first two. *Memory* is the peak of the process above what it held before the model was built, by
the kernel (`VmHWM`), with freed blocks given back at once. *FLOPs* are counted by
`controlllm.train.flops`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

from data_rows import machine, memory, reset_peak, shown, spread

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

WAYS: dict[str, dict[str, Any]] = {
    "bare": {},
    "native": {},
    "hf": {"training": {"backend": "hf"}},
    "full": {"method": "full"},
    "lora": {},
    "stack": {"expansion": {"structure": "stack", "divergence": "none"}},
    "native, loss in chunks": {"training": {"loss_chunk_size": 256}},
    "native, checkpointing": {"training": {"gradient_checkpointing": True}},
}
STEPS, ROWS, LENGTH = 7, 2, 256
M_MMAP_THRESHOLD = -3


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


def run_of(options: argparse.Namespace, folder: str) -> Any:
    from controlllm.train import RunConfig
    from controlllm.train.config_io import merge

    values = {
        "model": {"device": "cpu"},
        "expansion": {"num_blocks": options.layers // 4},
        "data": {
            "train": [{"path": str(options.data / "text/wikitext2_valid_test/valid.txt")}],
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
    return RunConfig.from_dict(merge(values, WAYS[options.measure]))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process."""
    import ctypes

    import torch

    torch.set_num_threads(1)
    base, tokenizer = make_base(options)
    for parameter in base.parameters():
        parameter.data.normal_(0, 0.02)  # All pages are there before memory is counted.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(options, folder)
        if options.measure in ("bare", "lora"):
            return bare(options, base, tokenizer, run)
        return ours(base, tokenizer, run)


class Watch:
    """Times of steps, and the peak of memory."""

    def __init__(self) -> None:
        reset_peak()
        self.before, self.times, self.last = memory("VmHWM"), [], time.process_time()

    def step_done(self) -> None:
        now = time.process_time()
        self.times.append(now - self.last)
        self.last = now

    def result(self, model: Any) -> dict[str, Any]:
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        return {
            "seconds": statistics.median(self.times[2:]),
            "mib": memory("VmHWM") - self.before,
            "parameters": sum(n for n, _ in sizes),
            "trained": sum(n for n, on in sizes if on),
        }


def bare(options: argparse.Namespace, base: Any, tokenizer: Any, run: Any) -> dict[str, Any]:
    """A loop that anyone would write."""
    import torch

    from controlllm.data import TrainLoader, model_inputs
    from controlllm.expansion import expand
    from controlllm.train.model import load_base

    base, tokenizer = load_base(run, (base, tokenizer))
    watch = Watch()
    if options.measure == "bare":
        model = expand(base, run.expansion)
    else:
        from peft import LoraConfig, get_peft_model

        linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules=linear))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5)
    batches = list(islice(TrainLoader(run.data, tokenizer, ROWS, 42), STEPS))
    watch.last = time.process_time()
    for batch in batches:
        model(**model_inputs(batch)).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.step_done()
    return watch.result(model)


def ours(base: Any, tokenizer: Any, run: Any) -> dict[str, Any]:
    from controlllm.train import train
    from controlllm.train.keeper import RunKeeper

    watch = Watch()
    after_step, start = RunKeeper.after_step, RunKeeper.start

    def watched_step(self: Any, *args: Any) -> None:
        after_step(self, *args)
        watch.step_done()

    def watched_start(self: Any) -> None:
        start(self)
        watch.last = time.process_time()

    RunKeeper.after_step, RunKeeper.start = watched_step, watched_start  # type: ignore[method-assign]
    result = train(run, (base, tokenizer))
    rows = [row for row in result.history if "train/loss" in row]
    flops = [value for name, value in rows[-1].items() if name.endswith("flops_per_step")]
    return {**watch.result(result.model), "flops": flops[0] if flops else None}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    text = "| way | trained / all, M | s a step | time to bare | to full | MiB added | to full |\n"
    text += "|---|---:|---:|---:|---:|---:|---:|\n"
    for way, runs in results.items():
        cells = [f"{runs[0]['trained'] / 1e6:.1f} / {runs[0]['parameters'] / 1e6:.1f}"]
        cells.append(shown([run["seconds"] for run in runs]))
        for rival in ("bare", "full"):
            pairs = zip(runs, results[rival], strict=True)
            cells.append(shown([a["seconds"] / b["seconds"] for a, b in pairs]))
        cells.append(shown([run["mib"] for run in runs], 0))
        pairs = zip(runs, results["full"], strict=True)
        cells.append(shown([a["mib"] / b["mib"] for a, b in pairs]))
        text += f"| {way} | {' | '.join(cells)} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data")
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=6400)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--measure", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print("\n" + json.dumps(measure(options)))
        return
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(options.repetitions):
        for way in options.ways:
            command = [sys.executable, *sys.argv, "--measure", way]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
            results[way].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"round {number + 1} of {options.repetitions} done", flush=True)
    text = table(results)
    print(text)
    record = {"machine": machine(), "command": sys.argv, "results": {}}
    for way, runs in results.items():
        record["results"][way] = {"seconds": spread([r["seconds"] for r in runs]), "runs": runs}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "train-step.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.output / "train-step.md").write_text(text)


if __name__ == "__main__":
    main()
