"""How long until the first optimizer step, and how much memory, as the rows grow?

    python benchmarks/data_first_step.py --data ../shared/data --output benchmarks-output \
        --rows 10000 20000 100000 1000000 10000000 20000000

Raw rows, nothing prepared, global shuffle on. Each number is of a fresh process, the file's pages
are thrown out of the system's memory before it starts. Two measurements for each file:

* `step`: `controlllm.train` of one step, from the start of the process (`process_s`) and from
  the call (`train_s`) until the optimizer has made its step;
* `loader`: a process that only builds the loader and draws batches: seconds to build it, to the
  first batch, and resident memory (`added_mib`: its peak over what imports and tokenizer take).

Twenty million rows take some 6 GB as JSON lines and 4 GB as Parquet; give a `--data_dir` with
room. Prints a table and writes `data_first_step.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from data_rows import (
    evict,
    machine,
    memory,
    short_rows,
    shown,
    spread,
    work_folder,
    write_jsonl,
    write_parquet,
)

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
KINDS = ("jsonl", "parquet")


def source_files(options: argparse.Namespace, folder: Path) -> dict[tuple[str, int], Path]:
    """One file for each kind and number of rows, made unless it is there."""
    files, rows = {}, short_rows(options.data)
    for kind in options.kinds:
        for count in options.rows:
            path = folder / f"rows-{count}.{kind}"
            if not path.exists():
                print(f"writing {path.name} ...", flush=True)
                part = path.with_suffix(".part")
                if kind == "jsonl":
                    write_jsonl(rows, part, count)
                else:
                    write_parquet(rows, part, count, options.group_rows)
                part.rename(path)
            files[kind, count] = path
    return files


def measure_apart(what: str, path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run one measurement in a fresh process."""
    evict(path)
    command = [sys.executable, __file__, "--data", str(options.data), "--measure", what]
    command += ["--file", str(path), "--batches", str(options.batches)]
    started = time.time()
    done = subprocess.run(
        [*command, "--started", repr(started)],
        capture_output=True,
        text=True,
        env={**os.environ, **ONE_THREAD},
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_step(options: argparse.Namespace) -> dict[str, float]:
    """One training step by the public call."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from controlllm.train import RunConfig, train

    ended: list[float] = []
    register_optimizer_step_post_hook(lambda *_: ended.append(time.time()))
    with tempfile.TemporaryDirectory() as folder:
        run = RunConfig.from_dict(
            {
                "method": "full",
                "model": {
                    "model_name_or_path": str(options.data / "checkpoints/stories260k-hf"),
                    "device": "cpu",
                },
                "data": {
                    "train": [{"path": str(options.file)}],
                    "max_length": 512,
                    "packing": True,
                    "shuffle": True,
                    "cache_dir": str(Path(folder) / "cache"),
                },
                "training": {
                    "output_dir": str(Path(folder) / "run"),
                    "max_steps": 1,
                    "per_device_train_batch_size": 4,
                    "learning_rate": 1e-3,
                },
                "logging": {"report_to": ["jsonl"]},
            }
        )
        called = time.time()
        train(run)
    return {
        "process_s": ended[0] - options.started,
        "train_s": ended[0] - called,
        "peak_mib": memory("VmHWM"),
    }


def measure_loader(options: argparse.Namespace) -> dict[str, float]:
    """Build the loader and draw batches; no model."""
    import pyarrow.json
    import pyarrow.parquet  # noqa: F401 (its memory belongs to the imports for both kinds)
    from transformers import AutoTokenizer

    from controlllm.data import DataConfig, SourceConfig
    from controlllm.data.loader.train_loader import TrainLoader

    tokenizer = AutoTokenizer.from_pretrained(options.data / "tokenizers/minimind6400")
    tokenizer("warm")
    before = memory()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = DataConfig(
            train=[SourceConfig(path=str(options.file))],
            max_length=2048,
            chat_template="plain",
            cache_dir=folder,
        )
        loader = TrainLoader(config, tokenizer, batch_size=8, seed=0)
        built = time.perf_counter() - started
        next(loader)
        first = time.perf_counter() - started
        for _ in range(options.batches - 1):
            next(loader)
        total = time.perf_counter() - started
        state = len(json.dumps(loader.state_dict()))
    return {
        "build_s": built,
        "first_batch_s": first,
        "slots_per_s": 8 * (options.batches - 1) / (total - first),
        "before_mib": before,
        "peak_mib": memory("VmHWM"),
        "added_mib": memory("VmHWM") - before,
        "end_mib": memory(),
        "heap_mib": memory("RssAnon"),
        "state_kib": state / 1024,
    }


def run_all(
    options: argparse.Namespace, files: dict[tuple[str, int], Path]
) -> dict[tuple[str, int], dict[str, list[float]]]:
    """All repetitions, interleaved: each round measures every file once."""
    results: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    measure_apart("step", next(iter(files.values())), options)  # Libraries into memory; not kept.
    for number in range(options.repetitions):
        for key, path in files.items():
            for what in ("step", "loader"):
                for name, value in measure_apart(what, path, options).items():
                    results[key][f"{what}_{name}"].append(value)
        print(f"round {number + 1} of {options.repetitions} done", flush=True)
    return results


def table(results: dict[tuple[str, int], dict[str, list[float]]], small: int) -> str:
    head = "| file | rows | process to step, s | ratio | train() to step, s | ratio | "
    head += (
        "loader built, s | first batch, s | loader's process, peak MiB | added MiB | state KiB |\n"
    )
    text = head + "|---|" + "---:|" * 10 + "\n"
    for (kind, count), values in results.items():
        base = results[kind, small]
        cells = []
        for name in ("step_process_s", "step_train_s"):
            cells.append(shown(values[name]))
            cells.append(shown([a / b for a, b in zip(values[name], base[name], strict=True)]))
        cells += [
            shown(values["loader_build_s"], 3),
            shown(values["loader_first_batch_s"], 3),
            shown(values["loader_peak_mib"], 0),
            shown(values["loader_added_mib"], 0),
            shown(values["loader_state_kib"], 0),
        ]
        text += f"| {kind} | {count:,} | {' | '.join(cells)} |\n"
    return text


def write(options: argparse.Namespace, results: Any, files: Any) -> None:
    small = 20_000 if 20_000 in options.rows else min(options.rows)
    text = table(results, small)
    print(f"ratio: to {small:,} rows, round by round\n\n{text}")
    record = {
        "machine": machine(),
        "command": sys.argv,
        "files": {
            f"{kind}-{count}": {"bytes": path.stat().st_size}
            for (kind, count), path in files.items()
        },
        "group_rows": options.group_rows,
        "results": {
            f"{kind}-{count}": {
                name: {**spread(values), "values": values} for name, values in measured.items()
            }
            for (kind, count), measured in results.items()
        },
    }
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.output / f"{options.name}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    target.with_suffix(".md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data")
    parser.add_argument("--data_dir", type=Path, help="where large files are made and kept")
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    parser.add_argument("--name", default="data_first_step", help="of the written files")
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 20_000_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--group_rows", type=int, default=100_000, help="of a Parquet row group")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--batches", type=int, default=200, help="that the loader's process draws")
    parser.add_argument("--measure", choices=("step", "loader"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.data = options.data.resolve()
    if options.measure:
        measure = measure_step if options.measure == "step" else measure_loader
        print(json.dumps(measure(options)))
        return
    with work_folder(options.data_dir) as folder:
        files = source_files(options, Path(folder))
        write(options, run_all(options, files), files)


if __name__ == "__main__":
    main()
