"""What does a sidecar lose in few bits? Bytes, gain, forgetting, items, and alpha measured again.

    python benchmarks/small_sidecars.py stories --seeds 0 1 2 --output benchmarks-output/small
    python benchmarks/small_sidecars.py run --model RUN --learn ANSWERS.jsonl --retain CHATS.jsonl \
        --unseen TEXT.txt --output benchmarks-output/small
    python benchmarks/small_sidecars.py sizes --output benchmarks-output/small
    python benchmarks/small_sidecars.py table --output benchmarks-output/small

`stories`: the real base stories260k is taught Shakespeare by the preset `retain`, a run a seed.
`run`: any run that is there. Alpha is chosen for the whole sidecar (some rows of the learn set, a
budget on some of the retain set); the table is of other rows of both and of a text that nothing was
chosen on, at that alpha and at one chosen anew for each file. Intervals (95 %) draw rows anew:
answers, paragraphs, pieces of a text. Every cell is a JSON file: what is there is not computed
again.
`sizes` counts the bytes of an 8 B model's sidecar from shapes; nothing is loaded.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from origin import about
from transformers import AutoModelForCausalLM, LlamaConfig

from controlllm.checkpoint import LoadOptions, export, load_model, make_form
from controlllm.common.losses import cross_entropy_sum, kl_sum
from controlllm.data import Batch, DataConfig, SourceConfig, eval_batches
from controlllm.evaluate import Reference, calibrate, evaluating, format_table
from controlllm.evaluate.forgetting.losses import model_logits, split_batch
from controlllm.evaluate.items.comparison import pair
from controlllm.evaluate.items.records import Evaluation, Item
from controlllm.evaluate.statistics import Interval, paired_bootstrap, paired_difference
from controlllm.expansion import expand
from controlllm.expansion.files.packed import stored_bytes
from controlllm.expansion.files.sidecar import save_sidecar, sidecar_tensors
from controlllm.train import RunConfig, train

BITS = (None, 4, 2, 1)
Row = list[float]
TOLD = ("learn", "retain", "unseen")
"""What is told; alpha is chosen on `learn_chosen` and `retain_chosen`. Only a run has `unseen`."""

APART = tuple(
    (side, reading) for side in ("from_base", "from_whole") for reading in ("rate", "bits_per_byte")
)
"""Differences of items: of a file from what, and in which reading."""


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
                "learning_rate": 3e-3,
                "per_device_train_batch_size": 4,
                "min_lr_rate": 0.1,
                "warmup_steps": 20,
                "save_steps": 10**6,
            },
            "logging": {"report_to": ["jsonl"]},
        }
        save_sidecar(train(RunConfig.from_dict(values)).model, folder / "model")
    return {"name": f"stories-{seed}", "model": folder / "model", "files": files, "length": 256}


def run_case(options: argparse.Namespace) -> dict[str, Any]:
    """A run that is there; alpha is chosen on the rows behind those that are told."""
    folder = options.output / options.name
    folder.mkdir(parents=True, exist_ok=True)
    parts, paths = {}, (options.learn, options.retain, options.unseen)
    for name, path, count in zip(TOLD, paths, options.rows, strict=True):
        rows = path.read_text().splitlines()
        if path.suffix != ".jsonl":
            rows = [json.dumps({"text": line}) for line in rows if len(line) > 200]
        parts[name] = rows[:count]
        if name != "unseen":
            parts[f"{name}_chosen"] = rows[count : count + options.chosen_rows]
    files = {name: folder / f"{name}.jsonl" for name in parts}
    for name, rows in parts.items():
        files[name].write_text("\n".join(rows) + "\n")
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
    config = DataConfig(max_length=case["length"], packing=False)
    sets = {
        name: eval_batches(SourceConfig(path=str(file)), tokenizer, config, 4)
        for name, file in case["files"].items()
        if name != "train"
    }
    own = whole = model.expansion.alpha
    if options.alphas:
        chosen = {"learn": sets["learn_chosen"]}, {"retain": sets["retain_chosen"]}
        curve = calibrate(model, *chosen, options.budget, options.alphas, options.refine)
        print(f"{label}\n{curve.table()}", flush=True)
        own = own if curve.chosen.alpha is None else curve.chosen.alpha  # None: as trained
        whole = own if bits is None else cell(options, case, None)["alpha"]
    told = {name: measured(model, sets[name], {whole, own}) for name in TOLD if name in sets}
    found = {
        "case": case["name"],
        "bits": bits,
        "bytes": (folder / "sidecar.safetensors").stat().st_size,
        "alpha": own,
        "at_whole_alpha": {name: part[whole] for name, part in told.items()},
        "at_own_alpha": {name: part[own] for name, part in told.items()},
        "about": about(),
    }
    path.write_text(json.dumps(found) + "\n")
    print(f"{path} is there", flush=True)
    return found


def measured(model: Any, batches: Sequence[Batch], alphas: set[float]) -> dict[float, list[Row]]:
    """At each alpha, of each row: tokens, loss of the base, loss, KL, in nats per token."""
    reference, found = Reference(model), {alpha: list[Row]() for alpha in alphas}
    with evaluating(model):
        for batch in batches:
            inputs, labels_BT = split_batch(batch)
            base_BTV = reference.forward(**inputs)
            for alpha, rows in found.items():
                model.set_alpha(alpha)
                logits_BTV = model_logits(model, inputs)
                for base, logits, labels in zip(
                    base_BTV.split(1), logits_BTV.split(1), labels_BT.split(1), strict=True
                ):
                    before, count = cross_entropy_sum(base, labels)
                    sums = (
                        before,
                        cross_entropy_sum(logits, labels)[0],
                        kl_sum(base, logits, labels)[0],
                    )
                    rows.append([int(count), *(round((x / count).item(), 6) for x in sums)])
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
        base, mine, wholes = (
            [item for item in part if item.benchmark == name]
            for part in (ours[0], ours[-1], theirs[-1])
        )
        found["benchmarks"][name] = {
            "items": len(mine),
            "base": sum(item.choice or 0 for item in base),
            "right": sum(item.choice or 0 for item in mine),
            "from_base": _apart(base, mine),
            "from_whole": _apart(wholes, mine),
        }
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found), flush=True)
    return found


def _apart(first: Sequence[Item], second: Sequence[Item]) -> dict[str, Any]:
    """The second's items beside the first's: lost, won, differences with their intervals."""
    pairs = pair(first, second)
    rates = [[one.choice or 0.0 for one in part] for part in zip(*pairs, strict=True)]
    bits = [[one.bits_per_byte or 0.0 for one in part] for part in zip(*pairs, strict=True)]
    rate, bit = paired_difference(*rates, rates=True), paired_difference(*bits)
    return {
        "lost": sum(a > b for a, b in zip(*rates, strict=True)),
        "won": sum(a < b for a, b in zip(*rates, strict=True)),
        "rate": astuple(rate.interval()),
        "bits_per_byte": astuple(bit.interval()),
    }


def _items(folder: Path) -> Sequence[Sequence[Item]]:
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


def _interval(rows: list[Row], whole: list[Row] | None = None) -> str:
    """The rise of the loss over the base's, or its share of the whole sidecar's rise."""

    def rise(of: list[Row], drawn: Sequence[int]) -> float:
        told = [of[number] for number in drawn]
        return sum(n * (loss - base) for n, base, loss, _ in told) / sum(row[0] for row in told)

    if whole is None:
        return str(paired_bootstrap(lambda drawn: rise(rows, drawn), len(rows)))
    return str(paired_bootstrap(lambda drawn: rise(rows, drawn) / rise(whole, drawn), len(rows)))


def table(options: argparse.Namespace) -> str:
    """All cells that are there."""
    cells = [json.loads(p.read_text()) for p in sorted(options.output.glob("*/*.json"))]
    losses = {(c["case"], c["bits"]): c for c in cells if "bytes" in c}
    asked = {(c["case"], c["bits"]): c for c in cells if "benchmarks" in c}
    rows: list[list[object]] = []
    for (case, bits), one in losses.items():
        whole = losses[case, None]
        first = whole["at_whole_alpha"]["learn"]
        places = {whole["alpha"]: "at_whole_alpha", one["alpha"]: "at_own_alpha"}
        for alpha, place in places.items():
            learn = one[place]["learn"]
            others = [_interval(one[place][name]) for name in TOLD[1:] if name in one[place]]
            rows.append(
                [
                    *(case, bits or "whole", one["bytes"], f"{alpha:.3f}", len(learn)),
                    *(_interval(learn), _interval(learn, first), *others),
                ]
            )
    head = ["case", "bits", "bytes", "alpha", "rows", "rise", "share of the whole's", *TOLD[1:]]
    widest = max((len(row) for row in rows), default=0)
    text = format_table(head[:widest], [[*row, *[""] * (widest - len(row))] for row in rows])
    lines: list[list[object]] = [
        [
            *(case, bits or "whole", name, c["items"], c["base"], c["right"]),
            *(c["from_whole"]["lost"], c["from_whole"]["won"]),
            *(str(Interval(*c[x][y])) for x, y in APART),
        ]
        for (case, bits), one in asked.items()
        for name, c in one["benchmarks"].items()
    ]
    asked_head = ["case", "bits", "benchmark", "n", "base", "right", "1->0", "0->1"]
    asked_head += [f"{y} {x}" for x, y in APART]
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
    parser.add_argument("--learn", type=Path, help="JSON lines, or a text of paragraphs")
    parser.add_argument("--retain", type=Path, help="the same: what alpha is bounded by")
    parser.add_argument("--unseen", type=Path, help="the same: told, and chosen by nothing")
    parser.add_argument("--rows", type=int, nargs=3, default=[40, 40, 40], help=f"told of {TOLD}")
    parser.add_argument("--chosen_rows", type=int, default=20, help="that alpha is chosen on")
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
