"""What does a base in 8 or 4 bits save, and what does it cost?

    python benchmarks/quantised_base.py --data ../shared/data --output benchmarks-output

A small real base is expanded and learns grade-school mathematics (GSM8K) beside its frozen base in
float32, bfloat16, int8 and nf4, by us, by bitsandbytes and by torchao: for the same steps, the same
rows, several seeds. Counted are the bytes of what is frozen; measured are losses on held-out
questions and on held-out text of another kind, before and after, and the losses of what was trained
when it is put onto another base: from quantised to float32, and from float32 to quantised.
Seconds are not measured: on a CPU, unpacking costs what it would not on a GPU.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

BASES = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize_base": "int8"},
    "nf4": {"quantize_base": "nf4"},
    "bnb_int8": {"quantize_base": "bnb_int8"},
    "bnb_nf4": {"quantize_base": "bnb_nf4"},
    "bnb_nf4_double": {"quantize_base": "bnb_nf4_double"},
    "torchao int8": {},
}
"""What of `model` differs; a base by `TorchAoConfig` is handed to the run. All compute in float32,
but where `bf16` is asked for."""

IN_FLOAT32 = [base for base in BASES if base != "bfloat16"]
IN_BFLOAT16 = ["bfloat16", "int8", "nf4", "bnb_nf4_double"]
RUNS = [*((base, "no") for base in IN_FLOAT32), *((base, "bf16") for base in IN_BFLOAT16)]


def run_config(options: argparse.Namespace, folder: Path, base: str, precision: str) -> Any:
    from controlllm.train import RunConfig

    maths = options.data / "sft" / "gsm8k"
    pairs = {"columns": {"prompt": "question", "completion": "answer"}}
    return RunConfig.from_dict(
        {
            "model": {"model_name_or_path": str(options.model), "device": "cpu", **BASES[base]},
            "expansion": {"num_blocks": options.blocks},
            "data": {
                "train": [{"path": str(maths / "train.jsonl.gz"), **pairs}],
                "learn": [{"path": str(maths / "test.jsonl"), "name": "gsm8k", **pairs}],
                "retain": [{"path": str(folder / "heldout.txt"), "name": "text"}],
                "max_length": 128,
                "chat_template": "plain",
                "max_eval_samples": 32,
            },
            "training": {
                "output_dir": str(folder / "run"),
                "max_steps": options.steps,
                "per_device_train_batch_size": 4,
                "learning_rate": options.learning_rate,
                "bf16": precision == "bf16",
                "eval_steps": options.steps,
                "save_steps": options.steps,
                "seed": options.seed,
            },
            "logging": {"report_to": []},
        }
    )


def measure(options: argparse.Namespace, base: str, precision: str) -> dict[str, Any]:
    """Train once; bytes, and losses before, after, and across bases."""
    from controlllm.checkpoint import find_tokenizer, newest_checkpoint
    from controlllm.train import train

    loaded = None
    if base == "torchao int8":
        loaded = by_torchao(options.model), find_tokenizer(str(options.model))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = options.text.read_text()
        (folder / "heldout.txt").write_text(text[-6_000:])
        run = run_config(options, folder, base, precision)
        result = train(run, loaded)
        sidecar = newest_checkpoint(result.output_dir)
        across = {"on float32": losses_on(run, sidecar, "float32")}
        if (base, precision) == ("float32", "no"):
            for other in (base for base in IN_FLOAT32[1:] if base in options.bases):
                across[f"on {other}"] = losses_on(run, sidecar, other)
    first, last = result.history[0], result.history[-1]
    return {
        "model": options.model.name,
        "base": base,
        "compute": precision,
        "seed": options.seed,
        **frozen_bytes(result.model),
        "text before": first["retain/text/loss"],
        "text after": last["retain/text/loss"],
        "maths before": first["learn/gsm8k/loss"],
        "maths after": last["learn/gsm8k/loss"],
        "text after, on the float32 base": across["on float32"][0],
        "maths after, on the float32 base": across["on float32"][1],
        "across": across,
    }


def by_torchao(folder: Path) -> Any:
    """The base in 8 bits by torchao's own recipe, through transformers."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    settings = TorchAoConfig(Int8WeightOnlyConfig())
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.float32
    )


def losses_on(run: Any, sidecar: Path, base: str) -> tuple[float, float]:
    """Losses on text and maths of what was trained, on another base; the base is checked."""
    from controlllm import load_sidecar
    from controlllm.checkpoint import LoadOptions, find_tokenizer, load_model
    from controlllm.data import eval_batches, read_examples
    from controlllm.evaluate import evaluate_losses
    from controlllm.train.setup.quantize import quantize_base

    tokenizer = find_tokenizer(str(sidecar))
    if base == "torchao int8":
        model: Any = load_sidecar(by_torchao(Path(run.model.model_name_or_path)), sidecar)
    else:
        kind = base if base.startswith("bnb_") else None
        model, _ = load_model(str(sidecar), LoadOptions(quantize_base=kind, dtype="float32"))
        if base in ("int8", "nf4"):
            quantize_base(model, base)
    model.eval()
    losses = []
    for source in (run.data.retain[0], run.data.learn[0]):
        examples, _ = read_examples(source, tokenizer, run.data)
        batches = eval_batches(examples, tokenizer, run.data, 8)
        losses.append(evaluate_losses(model, batches).loss)
    return losses[0], losses[1]


def frozen_bytes(model: Any) -> dict[str, int]:
    """Bytes of all that is frozen, and of the blocks' linear layers in it."""
    from torch import nn

    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    layers = {
        id(module.weight): module
        for block in model.base.get_decoder().layers
        for module in block.modules()
        if isinstance(module, nn.Linear) and id(module.weight) in frozen
    }
    linear = sum(weight_bytes(module) for module in layers.values())
    others = sum(p.nbytes for key, p in frozen.items() if key not in layers)
    return {"frozen bytes": linear + others, "linear bytes": linear}


def weight_bytes(layer: Any) -> int:
    """Of a layer's weight: all that is stored for it, codes, scales and tables of values."""
    from controlllm.common.packages.bitsandbytes import bnb_kind, stored_bytes

    if bnb_kind(layer) is not None:
        return stored_bytes(layer)
    weight = layer.weight
    if hasattr(weight, "tensor_data_names"):  # a tensor class of torchao
        return sum(getattr(weight, name).nbytes for name in weight.tensor_data_names)
    return weight.nbytes


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each base and precision; losses are means over seeds (and their range)."""
    losses = [key for key in rows[0] if isinstance(rows[0][key], float)]
    runs = [run for run in RUNS if any((row["base"], row["compute"]) == run for row in rows)]
    head = ["base", "compute", "linear layers, bytes", "all frozen, bytes", *losses]
    lines = [f"| {' | '.join(head)} |", f"|---|---|{'---:|' * (len(head) - 2)}"]
    for base, precision in runs:
        group = [row for row in rows if (row["base"], row["compute"]) == (base, precision)]
        cells = [base, {"no": "float32"}.get(precision, precision)]
        cells += [f"{group[0][key]:,}" for key in ("linear bytes", "frozen bytes")]
        for key in losses:
            values = [row[key] for row in group]
            spread = f" ({min(values):.3f}–{max(values):.3f})" if len({*values}) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def across_table(rows: list[dict[str, Any]]) -> str:
    """What was trained beside the float32 base, on each other base; means over seeds."""
    lines = ["| trained beside float32, on | text | maths |", "|---|---:|---:|"]
    group = [row["across"] for row in rows if (row["base"], row["compute"]) == ("float32", "no")]
    for key in group[0]:
        pairs = [one[key] for one in group]
        means = [statistics.mean(values) for values in zip(*pairs, strict=True)]
        lines.append(f"| {key.removeprefix('on ')} | {means[0]:.3f} | {means[1]:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    parser.add_argument("--model", type=Path, help="default: stories260k of --data")
    parser.add_argument("--text", type=Path, help="held-out text; default: tinystories of --data")
    parser.add_argument("--blocks", type=int, default=2, help="expanded blocks")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of 512 tokens")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    names = list(dict.fromkeys(base for base, _ in RUNS))
    parser.add_argument("--bases", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    options.model = options.model or options.data / "checkpoints" / "stories260k-hf"
    options.text = options.text or options.data / "text/tinystories_excerpt/tinystories.txt"

    import torch

    from controlllm.common.quiet import quiet_imports

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows = []
    with quiet_imports():
        for seed in options.seeds:
            options.seed = seed
            for base, precision in (run for run in RUNS if run[0] in options.bases):
                rows.append(measure(options, base, precision))
                print(json.dumps(rows[-1]), flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.output / f"quantised-base-{options.model.name}.json"
    target.write_text(json.dumps({"commit": commit.stdout.strip(), "rows": rows}, indent=1))
    print(table(rows), across_table(rows), sep="\n\n")


if __name__ == "__main__":
    main()
