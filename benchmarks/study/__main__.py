"""Run a study, or go on with it; then its tables, its raw numbers and its picture.

    python -m benchmarks.study benchmarks/study/studies/losses.yaml --output runs/losses
    python -m benchmarks.study ... --minutes 30      # begins no cell that would not fit
    python -m benchmarks.study ... --table           # of what is there; nothing is run

Rates and dials are chosen on a part of the new domain and on text that the base wrote; what is told
is other text. A cell that was killed goes on from its last checkpoint, and one that is done is not
done again; several processes may work on one study.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from benchmarks.study.cells import Bench
from benchmarks.study.plan import read_study
from benchmarks.study.tables import draw, read_results, tables


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("--table", action="store_true", help="tell what is there, run nothing")
    options = parser.parse_args()
    study = read_study(options.study)
    torch.set_flush_denormal(True)
    if not options.table:
        bench = Bench(study, options.data, options.output)
        end, took = time.monotonic() + 60 * options.minutes, [0.0]
        for cell in study.cells():
            if (options.arms and cell.name not in options.arms) or (
                options.seeds and cell.seed not in options.seeds
            ):
                continue
            if time.monotonic() + max(took[-5:]) > end:
                print("The time is over; the same command goes on from here.")
                break
            started = time.monotonic()
            if bench.work(cell):
                took.append(time.monotonic() - started)
                mean = statistics.mean(took[1:])
                told = f"{cell.shift} {cell.name} {cell.rate:g} seed {cell.seed}"
                print(f"{told}: {took[-1]:.0f} s, {mean:.0f} s a cell", flush=True)
    results = read_results(study, options.output)
    if not results:
        print("No cell is done yet.")
        return
    print(tables(study, results))
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(study, results, options.output / "study.png")


if __name__ == "__main__":
    main()
