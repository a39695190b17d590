"""Run a study, or go on with it; then its tables, its raw numbers and its picture.

    python -m benchmarks.study benchmarks/study/studies/losses.yaml --output runs/losses
    python -m benchmarks.study ... --minutes 30      # begins no cell that would not fit
    python -m benchmarks.study ... --table           # of what is there; nothing is run

Rates and dials are chosen on a part of the new domain and on text that the base wrote; what is told
is other text. A cell that was killed goes on from its last checkpoint, and one that is done is not
done again, but for what is told of it where the study tells other text now; several processes may
work on one study.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from benchmarks.study.cells import Bench
from benchmarks.study.plan import read_study
from benchmarks.study.records import RESULT, read_results, write_numbers
from benchmarks.study.tables import draw, page_tables, tables

from controlllm.common.errors import ConfigError, ControlLLMError
from controlllm.common.registry import check_choice


def main() -> None:
    """Read the command line and do what it says; what is refused is one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--arms", nargs="+", help="only these; told beside the yardstick")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("--table", action="store_true", help="tell what is there, run nothing")
    parser.add_argument("--page", action="store_true", help="the same as tables for a page")
    options = parser.parse_args()
    try:
        _work(options)
    except ControlLLMError as error:
        parser.exit(1, f"{error}\n")


def _work(options: argparse.Namespace) -> None:
    study = read_study(options.study)
    torch.set_flush_denormal(True)
    for name in options.arms or ():
        check_choice("--arms", name, study.arms)
    for seed in options.seeds or ():
        check_choice("--seeds", str(seed), map(str, study.seeds))
    if not (options.table or options.page):
        cells = [
            cell
            for cell in study.cells()
            if cell.name in (options.arms or study.arms)
            and cell.seed in (options.seeds or study.seeds)
        ]
        if not options.data.is_dir():
            raise ConfigError(f"--data {options.data}: there is no such folder.")
        bench = Bench(study, options.data, options.output)
        bench.check(cells)
        end, took = time.monotonic() + 60 * options.minutes, [0.0]
        for cell in cells:
            if time.monotonic() + max(took) > end:
                print("The time is over; the same command goes on from here.")
                break
            started = time.monotonic()
            if bench.work(cell):
                took.append(time.monotonic() - started)
                mean = statistics.mean(took[1:])
                told = f"{cell.shift} {cell.name} {cell.rate:g} seed {cell.seed}"
                print(f"{told}: {took[-1]:.0f} s, {mean:.0f} s a cell", flush=True)
    results = read_results(study, options.output)
    cells = list(study.cells())
    others = sum((cell.folder(options.output) / RESULT).is_file() for cell in cells)
    print(f"{len(results)} of {len(cells)} cells are done.")
    if others > len(results):
        number = others - len(results)
        print(f"{number} more were told on other text; the study tells them again when it is run.")
    print()
    if not results:
        return
    write_numbers(results, options.output / f"{options.study.stem}.csv")
    arms = {*(options.arms or study.arms), study.yardstick, study.compared_with}
    seeds = options.seeds or study.seeds
    results = [one for one in results if one["arm"] in arms and one["seed"] in seeds]
    print(page_tables(study, results) if options.page else tables(study, results))
    draw(study, results, options.output / f"{options.study.stem}.png")


if __name__ == "__main__":
    main()
