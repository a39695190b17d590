"""Which learning rate suits each method of the demo? One row per method and rate.

    python benchmarks/demo_learning_rates.py --output benchmarks-output

Runs the demo's own configs, only the learning rate changes. Everything that was tried is in the
table; prints it and writes `demo_learning_rates.json`.
"""

import argparse
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import torch

from controlllm.common.storage.files import write_json
from controlllm.demo import DemoConfig
from controlllm.demo.domains import NEW, OLD, choosing, held_out, write_data
from controlllm.demo.methods import METHODS, load_base, train_and_measure
from controlllm.demo.results import ON_OWN
from controlllm.evaluate import format_table

HEADERS = [
    "method", "learning rate", "new-domain loss", "forgetting", "within budget: dial",
    "new-domain loss", "forgetting",
]  # fmt: skip


def main() -> None:
    arguments = parse_arguments()
    torch.set_flush_denormal(True)
    config = DemoConfig(str(arguments.output / "demo"), arguments.max_steps)
    data = Path(config.output_dir) / "data"
    write_data(data, config)
    base, tokenizer = load_base()
    sets = held_out(data, tokenizer)
    chooses = choosing(data, base, tokenizer, config)
    rows, records = [], []
    for method in METHODS:
        for rate in arguments.rates:
            values = deepcopy(method.values)
            values["training"]["learning_rate"] = rate
            outcome, _ = train_and_measure(replace(method, values=values), config, sets, chooses)
            trained, chosen = outcome.trained, outcome.chosen(ON_OWN)
            rows.append(
                [
                    method.title,
                    f"{rate:g}",
                    trained.learn[NEW].loss,
                    trained.retain[OLD].forgetting,
                    chosen.label,
                    chosen.learn[NEW].loss,
                    chosen.retain[OLD].forgetting,
                ]
            )
            records.append({"learning_rate": rate, **asdict(outcome)})
            write_json(arguments.output / "demo_learning_rates.json", records)
            print(format_table(HEADERS, rows), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--max_steps", type=int, default=DemoConfig.max_steps)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3, 1e-2])
    return parser.parse_args()


if __name__ == "__main__":
    main()
