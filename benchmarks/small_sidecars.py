"""What does a sidecar lose in few bits? Bytes, gain, forgetting, items, and alpha measured again.

    python benchmarks/small_sidecars.py stories --seeds 0 1 2 --output benchmarks-output/small
    python benchmarks/small_sidecars.py run --model RUN --learn ANSWERS.jsonl --retain TEXT.txt \
        --unseen OTHER.txt --output benchmarks-output/small
    python benchmarks/small_sidecars.py sizes --output benchmarks-output/small
    python benchmarks/small_sidecars.py table --output benchmarks-output/small

`stories`: the real base stories260k is taught Shakespeare by the preset `retain`, a run a seed.
`run`: any run that is there. Alpha is chosen for the whole sidecar (half of the learn set, a budget
on the retain set); the table is of the other half and of a text that nothing was chosen on, at that
alpha and at one chosen anew for each file. Every cell is a JSON file: what is there is not computed
again. `sizes` counts the bytes of an 8 B model's sidecar from shapes; nothing is loaded.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from learn_and_forget import about
from transformers import AutoModelForCausalLM, LlamaConfig

from controlllm.checkpoint import LoadOptions, export, load_model, make_form
from controlllm.data import DataConfig, SourceConfig, eval_batches
from controlllm.evaluate import Reference, calibrate, format_table, measure_retention
from controlllm.evaluate.items.comparison import pair
from controlllm.evaluate.items.records import Evaluation
from controlllm.expansion import expand
from controlllm.expansion.files.packed import stored_bytes
from controlllm.expansion.files.sidecar import save_sidecar, sidecar_tensors
from controlllm.train import RunConfig, train

BITS = (None, 4, 2, 1)
SETS = ("learn_chosen", "learn", "retain_chosen", "retain")
"""Two halves each: one that alpha is chosen on, one that is told."""


def stories_case(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Teach stories260k Shakespeare; the model lies in the case's folder then."""
    folder = options.output / f"stories-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    base = options.data / "checkpoints/stories260k-hf"
    new = (options.data / "text/tinyshakespeare/input.txt").read_text()
    old = (options.data / "text/tinystories_excerpt/tinystories.txt").read_text()
    cut, half, size = int(len(new) * 0.9), len(old) // 2, options.characters
    texts = {
        "train": new[:cut],
        "learn_chosen": new[cut : cut + size],
        "learn": new[cut + size : cut + 2 * size],
        "retain_chosen": old[half : half + size],
        "retain": old[half + size : half + 2 * size],
    }
    files = {name: folder / f"{name}.txt" for name in texts}
    for name, text in texts.items():
        files[name].write_text(text)
    if not (folder / "model").exists():
        values = {
            "preset": "retain",
            "model": {"model_name_or_path": str(base), "attn_implementation": "sdpa"},
            "expansion": {"layers": [0, 1, 2, 3, 4]},
            "rehearsal": {"length": 256},
            "data": {"train": [{"path": str(files["train"])}], "max_length": 256},
            "training": {
                "output_dir": str(folder / "run"),
                "overwrite_output_dir": True,
                "resume_from_checkpoint": "never",
                "seed": seed,
                "max_steps": options.steps,
                "per_device_train_batch_size": 4,
                "learning_rate": 3e-3,
                "min_lr_rate": 0.1,
                "warmup_steps": 20,
                "eval_steps": 10**6,
                "save_steps": 10**6,
            },
            "logging": {"report_to": ["jsonl"]},
        }
        save_sidecar(train(RunConfig.from_dict(values)).model, folder / "model")
    return {"name": f"stories-{seed}", "model": folder / "model", "files": files, "length": 256}


def run_case(options: argparse.Namespace) -> dict[str, Any]:
    """A run that is there; the learn set is cut in two halves."""
    folder = options.output / options.name
    folder.mkdir(parents=True, exist_ok=True)
    rows = options.learn.read_text().splitlines()[: options.answers * 2]
    halves = {"learn_chosen": rows[1::2], "learn": rows[::2]}
    for name, part in halves.items():
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    for name, path in {"retain_chosen": options.retain, "retain": options.unseen}.items():
        paragraphs = [line for line in path.read_text().splitlines() if len(line) > 200]
        (folder / f"{name}.txt").write_text("\n\n".join(paragraphs[: options.paragraphs]))
    files = {name: folder / f"{name}.{'jsonl' if name in halves else 'txt'}" for name in SETS}
    return {"name": options.name, "model": options.model, "files": files, "length": options.length}


def cell(options: argparse.Namespace, case: dict[str, Any], bits: int | None) -> dict[str, Any]:
    """One file: its bytes, what it has learned and forgotten, before and after alpha anew."""
    label = "whole" if bits is None else f"{bits}-bit"
    place = options.output / case["name"]
    path = place / f"{label}.json"
    if path.is_file():
        return json.loads(path.read_text())
    folder = place / label
    load = LoadOptions(dtype=options.dtype)
    if not folder.exists():
        model, tokenizer = load_model(case["model"])
        export(model, folder, make_form("sidecar", {"bits": bits}), tokenizer)
    model, tokenizer = load_model(folder, load)
    config = DataConfig(max_length=case["length"])
    sets = {
        name: eval_batches(SourceConfig(path=str(file)), tokenizer, config, 8)
        for name, file in case["files"].items()
        if name in SETS
    }
    reference = Reference(model)

    def told() -> dict[str, float]:
        reports = {n: measure_retention(model, sets[n], reference=reference) for n in SETS[1::2]}
        return {
            "base_loss": reports["learn"].base_loss,
            "loss": reports["learn"].loss,
            "forgetting": reports["retain"].forgetting,
            "kl": reports["retain"].kl,
        }

    own = whole = model.expansion.alpha
    if options.alphas:
        chosen = {"learn": sets["learn_chosen"]}, {"retain": sets["retain_chosen"]}
        own = calibrate(model, *chosen, options.budget, options.alphas, options.refine).chosen.alpha
        whole = own if bits is None else cell(options, case, None)["alpha"]
    again = told()
    model.set_alpha(whole)
    found = {
        "case": case["name"],
        "bits": bits,
        "bytes": (folder / "sidecar.safetensors").stat().st_size,
        "alpha": own,
        "at_whole_alpha": told() if whole != own else again,
        "at_own_alpha": again,
        "about": about(),
    }
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found), flush=True)
    return found


def items(options: argparse.Namespace, case: dict[str, Any], bits: int | None) -> dict[str, Any]:
    """How many questions the file answers, and which of the whole sidecar's it answers otherwise.

    All at the alpha of the whole sidecar.
    """
    label = "whole" if bits is None else f"{bits}-bit"
    place = options.output / case["name"]
    path = place / f"{label}-items.json"
    if path.is_file():
        return json.loads(path.read_text())
    alpha = cell(options, case, None)["alpha"]
    verb = [sys.executable, "-m", "controlllm.cli", "eval", str(place / label), "--suite", "small"]
    verb += ["--benchmarks", ",".join(options.benchmarks), "--sample", str(options.sample)]
    verb += ["--data_dir", str(options.data), "--alpha", f"{alpha:g}", "--batch_size", "8"]
    verb += ["--save_to", str(place / f"{label}-items")]
    subprocess.run([*verb, "--load.dtype", options.dtype], check=True)
    found: dict[str, Any] = {"case": case["name"], "bits": bits, "alpha": alpha, "benchmarks": {}}
    ours, theirs = (_items(place / f"{one}-items") for one in (label, "whole"))
    for name in options.benchmarks:
        mine = [item for item in ours[-1] if item.benchmark == name]
        wholes = [item for item in theirs[-1] if item.benchmark == name]
        bases = [item for item in ours[0] if item.benchmark == name]
        found["benchmarks"][name] = {
            "items": len(mine),
            "base": sum(item.choice or 0 for item in bases),
            "right": sum(item.choice or 0 for item in mine),
            "lost": sum((a.choice or 0) > (b.choice or 0) for a, b in pair(wholes, mine)),
            "won": sum((a.choice or 0) < (b.choice or 0) for a, b in pair(wholes, mine)),
            "bits_per_byte": sum(item.bits_per_byte or 0 for item in mine) / len(mine),
        }
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found), flush=True)
    return found


def _items(folder: Path) -> Sequence[Any]:
    """The items of base and model."""
    return list(Evaluation.load(folder / "small").items.values())


def sizes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Bytes of the sidecar of Llama-3.1-8B's shapes in bfloat16, computed on the meta device."""
    shapes = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    found = []
    for blocks, ends in ((8, False), (16, False), (8, True)):
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(shapes, dtype=torch.bfloat16)
            model = expand(base, num_blocks=blocks, expand_ends=ends)
        tensors = sidecar_tensors(model)
        row: dict[str, Any] = {"blocks": blocks, "ends": ends}
        row["parameters"] = sum(tensor.numel() for tensor in tensors.values())
        row["bytes"] = {str(bits): stored_bytes(model, tensors, bits) for bits in BITS}
        found.append(row)
    (options.output / "sizes.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


def table(options: argparse.Namespace) -> str:
    """All cells that are there."""
    cells = [json.loads(p.read_text()) for p in sorted(options.output.glob("*/*.json"))]
    losses = {(c["case"], c["bits"]): c for c in cells if "bytes" in c}
    asked = {(c["case"], c["bits"]): c for c in cells if "benchmarks" in c}
    head = ["case", "bits", "bytes", "alpha", "loss", "gain kept", "forgetting", "own alpha"]
    rows: list[list[object]] = []
    for case in sorted({case for case, _ in losses}):
        for bits in BITS:
            if (one := losses.get((case, bits))) is None:
                continue
            whole, at, own = losses[case, None], one["at_whole_alpha"], one["at_own_alpha"]
            first = whole["at_whole_alpha"]
            gain = (at["base_loss"] - at["loss"]) / (first["base_loss"] - first["loss"])
            rows.append(
                [
                    *(case, bits or "whole", one["bytes"], f"{whole['alpha']:.3f}"),
                    *(f"{at['loss']:.4f}", f"{100 * gain:.2f} %", f"{at['forgetting']:+.4f}"),
                    *(f"{one['alpha']:.3f}", f"{own['loss']:.4f}", f"{own['forgetting']:+.4f}"),
                ]
            )
    text = format_table([*head, "loss there", "forgetting there"], rows)
    lines: list[list[object]] = [
        [
            *(case, bits or "whole", name, c["items"], c["base"], c["right"], c["lost"], c["won"]),
            f"{c['bits_per_byte']:.4f}",
        ]
        for (case, bits), one in asked.items()
        for name, c in one["benchmarks"].items()
    ]
    asked_head = ["case", "bits", "benchmark", "n", "base", "right", "1->0", "0->1", "bits/byte"]
    return f"{text}\n\n{format_table(asked_head, lines)}"


def main() -> None:
    """Parse, compute what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["stories", "run", "sizes", "table"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output/small"))
    parser.add_argument("--bits", type=int, nargs="+", default=[0, 4, 2, 1], help="0: whole")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--characters", type=int, default=30_000, help="of each held-out text")
    parser.add_argument("--name", default="run")
    parser.add_argument("--model", help="a run, a checkpoint or a sidecar")
    parser.add_argument("--learn", type=Path)
    parser.add_argument("--retain", type=Path)
    parser.add_argument("--unseen", type=Path)
    parser.add_argument("--answers", type=int, default=20, help="of each half")
    parser.add_argument("--paragraphs", type=int, default=20, help="of each text")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default="float32", help="to measure in; files are as trained")
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument(
        "--alphas",
        type=float,
        nargs="*",
        default=[0.2, 0.4, 0.6, 0.8, 1.0],
        help="to choose from; none: the alpha of training, without choosing",
    )
    parser.add_argument("--refine", type=int, default=2)
    parser.add_argument("--benchmarks", nargs="*", default=["arc_easy", "piqa"])
    parser.add_argument("--sample", type=int, default=40)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    if options.what == "sizes":
        print(json.dumps(sizes(options), indent=2))
        return
    if options.what in ("stories", "run"):
        seeds = options.seeds if options.what == "stories" else [None]
        for seed in seeds:
            case = run_case(options) if seed is None else stories_case(options, seed)
            chosen = [bits for bits in BITS if (bits or 0) in options.bits]
            for bits in chosen:
                cell(options, case, bits)
            for bits in chosen if options.benchmarks else ():
                items(options, case, bits)
    print(table(options))


if __name__ == "__main__":
    main()
