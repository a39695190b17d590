"""How quickly are prepared tokens read, shuffled, packed and collated, against other libraries?

    python benchmarks/data_reading.py --data ../shared/data --output benchmarks-output \
        --peers PEERS

One process, no workers, a warm page cache, shuffle on, batches of 8 x 2,048 (and 4,096) tokens,
int64 tensors. All read the same tokens: real rows, repeated with other numbers, tokenized and
stored by `controlllm`'s own preparation. The peers get fixed chunks out of one long row of tokens,
which knows no documents, unless the table says so; ours reads document by document, shuffles
documents, keeps them apart (`cu_seq_lens`, restarting positions) and masks what is no target, in
both of its ways.

Each peer has an environment of its own below `--peers` (they conflict with ours):

    python -m venv PEERS/mosaic && PEERS/mosaic/bin/pip install torch==2.13.0 mosaicml-streaming
    python -m venv PEERS/litdata && PEERS/litdata/bin/pip install torch==2.13.0 litdata
    python -m venv PEERS/grain && PEERS/grain/bin/pip install torch==2.13.0 grain array_record

TRL and `datasets` run in this one. What is not there is named and left out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_rows import machine, real_rows, real_texts, shown, spread, work_folder, write_jsonl

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
SCRIPTS = {"mosaic": "mosaic.py", "litdata": "lit.py", "grain": "grains.py"}
"""Environment -> script; `bare.py` and `hf.py` run in this environment."""

ROWS = {"chat": 130_000, "text": 18_000}
"""Rows of each set: some 20 million tokens."""

STRATEGIES = ("best_fit", "concat", "fixed")
"""Our ways: documents packed while reading, or slots filled beforehand."""

WARM = 50


def loader_config(options: argparse.Namespace, strategy: str) -> Any:
    from controlllm.data import DataConfig, SourceConfig

    return DataConfig(
        train=[SourceConfig(path=str(options.tokens / "rows.jsonl"))],
        max_length=options.length,
        packing_strategy=strategy,
        chat_template="plain",
        num_workers=options.num_workers,
        cache_dir=str(options.tokens / f"cache-{options.length}"),
    )


def load_tokenizer(options: argparse.Namespace) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(options.data / "tokenizers/minimind6400")


def prepare(options: argparse.Namespace) -> int:
    """Our own preparation, and the same tokens as plain arrays for the peers."""
    import numpy as np

    from controlllm.data.cache.prepare import prepare_source
    from controlllm.data.examples.encode import RowEncoder
    from controlllm.data.sources import open_chunks

    config, tokenizer = loader_config(options, "best_fit"), load_tokenizer(options)
    source = config.train[0]
    encoder = RowEncoder(source, tokenizer, config, training=True)
    store = prepare_source(encoder, open_chunks(source, config.timeout))
    np.save(options.tokens / "ends.npy", np.cumsum(store.lengths))
    examples = [store[i].input_ids for i in range(len(store))]
    np.save(options.tokens / "ids.npy", np.concatenate(examples))
    return store.tokens


def measure_ours(options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import torch

    from controlllm.data.cache.store import TokenStore
    from controlllm.data.loader.train_loader import TrainLoader

    torch.set_num_threads(1)
    config = loader_config(options, options.strategy)
    loader = TrainLoader(config, load_tokenizer(options), options.batch, seed=0)
    assert isinstance(loader.feeds[0].chunks, TokenStore), "the rows are not prepared"
    for _ in range(WARM):
        batch = next(loader)
    assert batch["input_ids"].dtype == torch.int64
    started, used, tokens = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < options.seconds:
        tokens += int(np.count_nonzero(next(loader)["origin"].numpy() >= 0))
    return {
        "name": f"controlllm, {options.strategy}",
        "tokens": tokens,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - used,
        "shape": list(batch["input_ids"].shape),
    }


def run(command: Sequence[object], name: str) -> list[dict[str, Any]]:
    """The JSON lines that a process prints; none, with the reason shown, where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
    if done.returncode:
        print(f"{name} failed:\n{done.stderr[-1500:]}", flush=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]


def one_round(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Everybody once, one after the other."""
    here = Path(__file__)
    common = ["--tokens", folder, "--length", options.length, "--batch", options.batch]
    common += ["--seconds", options.seconds]
    own = [sys.executable, here, "--data", options.data, "--measure", *common, "--strategy"]
    found = [line for s in STRATEGIES for line in run([*own, s], f"controlllm {s}")]
    if len(found) < len(STRATEGIES):
        raise SystemExit("nothing to compare with")
    work = ["--work", folder / "peers"]
    for script in ("bare.py", "hf.py"):
        found += run([sys.executable, here.parent / "peers" / script, *common, *work], script)
    for name, script in SCRIPTS.items():
        python = options.peers / name / "bin/python" if options.peers else Path("none")
        if python.exists():
            found += run([python, here.parent / "peers" / script, *common, *work], name)
    return found


def measure_set(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(options.repetitions + 1):
        found = one_round(options, folder)
        for record in found if number else ():  # The first round writes formats, fills caches.
            results[record["name"]].append(record)
        print(f"round {number} of {options.repetitions} done", flush=True)
    return results


def table(title: str, results: dict[str, list[dict[str, Any]]]) -> str:
    text = f"**{title}**\n\n| reader | million tokens/s | million tokens/s of CPU time | "
    text += "best_fit to it | concat to it | fixed to it |\n|---|---:|---:|---:|---:|---:|\n"
    rates = {
        name: [record["tokens"] / record["seconds"] / 1e6 for record in records]
        for name, records in results.items()
    }
    for name, records in results.items():
        cpu = [record["tokens"] / record["cpu_seconds"] / 1e6 for record in records]
        ours = [
            shown([a / b for a, b in zip(rates[f"controlllm, {way}"], rates[name], strict=False)])
            for way in STRATEGIES
        ]
        text += f"| {name} | {shown(rates[name], 1)} | {shown(cpu, 1)} | {' | '.join(ours)} |\n"
    return text


def run_sets(options: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    text, record = "", {}
    for rows in options.rows:
        for length in options.lengths:
            place = folder / f"{rows}-{length}"
            place.mkdir(parents=True, exist_ok=True)
            options.length = length
            if not (place / "ids.npy").exists():
                real = real_texts if rows == "text" else real_rows
                write_jsonl(real(options.data), place / "rows.jsonl", ROWS[rows])
                here = [sys.executable, __file__, "--data", options.data, "--prepare"]
                run([*here, "--tokens", place, "--length", length], "prepare")
            results = measure_set(options, place)
            part = table(f"{rows}, length {length}", results)
            print(part, flush=True)
            text += part + "\n"
            record[f"{rows}/{length}"] = {
                name: {
                    "tokens_per_s": spread([r["tokens"] / r["seconds"] for r in records]),
                    "tokens_per_cpu_s": spread([r["tokens"] / r["cpu_seconds"] for r in records]),
                    "runs": records,
                }
                for name, records in results.items()
            }
    return text, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data")
    parser.add_argument("--data_dir", type=Path, help="where files are made and kept")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--num_workers", type=int, default=0, help=argparse.SUPPRESS)
    for name in ("--measure", "--prepare"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--strategy", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        print(f"{prepare(options):,} tokens")
        return
    if options.measure:
        print(json.dumps(measure_ours(options)))
        return
    with work_folder(options.data_dir) as folder:
        text, results = run_sets(options, Path(folder))
    options.output.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(), "command": sys.argv, "results": results}
    target = options.output / "data_reading.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    target.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
