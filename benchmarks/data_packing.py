"""How full are packed slots, how quick is packing, and how equal is the work of 8 ranks?

    python benchmarks/data_packing.py --data ../shared/data --peers PEERS

Real rows (GSM8K, Dolly, Codegen, Chinese questions, all of them in one shuffled order), tokenized
once with a real tokenizer. `--peers` holds `grain/`, an environment with grain 0.2.18; without it
the table has our rows only.

* *fill*: real tokens per token of the slots, all slots of the data counted, the last one too.
* *tokens/s*: of the process's own time on one core, from arrays of tokens to tensors (ours: window,
  choice, collator; `choice alone`: lengths in, positions out; grain: to its arrays).
* *max/mean*: padded tokens of the costliest of 8 lanes per mean over the lanes, step by step, for
  padded batches: the time of a step is that of the slowest rank.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data_rows import machine, real_rows
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from controlllm.data import DataConfig
from controlllm.data.examples.encode import Example
from controlllm.data.loader.batchers import Batcher, fill_ratio, item_capacity, make_batcher
from controlllm.data.loader.collate import collate
from controlllm.data.loader.draws import Draw
from controlllm.data.loader.packing import fill_slots

TOKENIZERS = {
    "minimind6400": "tokenizers/minimind6400",
    "stories260k": "checkpoints/stories260k-hf",
}
LANES, STEPS = 8, 400
BALANCED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rows as drawn, 8", {}),
    ("group_by_length, 8 rows", {"group_by_length": True}),
    ("max_tokens_per_batch, 8,192", {"max_tokens_per_batch": 8192}),
    ("max_tokens_per_batch, 16,384", {"max_tokens_per_batch": 16384}),
)


def examples_of(data: Path, tokenizer: PreTrainedTokenizerBase, length: int) -> list[Example]:
    """Prompt and completion of each row, cut at `length` tokens."""
    texts = [f"{row['prompt']}\n{row['completion']}" for row in real_rows(data)]
    arrays = [
        np.array(ids[:length], np.int32)
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
    ]
    return [Example(ids, np.r_[np.int32(-100), ids[1:]]) for ids in arrays if len(ids) > 1]


def in_turn(examples: Sequence[Example]) -> Callable[[], Draw | None]:
    """Draws each example once, in order."""
    draws = iter(examples)

    def draw() -> Draw | None:
        example = next(draws, None)
        return None if example is None else Draw(0, (0, 0, 0), example)

    return draw


def items(batcher: Batcher) -> Iterator[Any]:
    while item := batcher.next():
        yield item


def pack(examples: Sequence[Example], config: DataConfig, name: str) -> dict[str, Any]:
    """The whole way of our packer."""
    batcher = make_batcher(in_turn(examples), config, 1, 0)
    start, slots = time.process_time(), 0
    for item in items(batcher):
        collate([[(draw.example, 0) for draw in slot] for slot in item], config, 0)
        slots += len(item)
    seconds = time.process_time() - start
    # Of `concat` every part after a document's first repeats one token, which is not counted here.
    tokens = sum(map(len, examples))
    return {
        "name": name,
        "tokens": tokens,
        "capacity": slots * config.max_length,
        "seconds": seconds,
    }


def choose(examples: Sequence[Example], config: DataConfig, name: str) -> dict[str, Any]:
    """The choice of rows alone."""
    lengths = [len(example) for example in examples]
    start = time.process_time()
    slots = list(fill_slots(lengths, config.max_length, config.packing_lookahead))
    seconds = time.process_time() - start
    capacity = len(slots) * config.max_length
    return {"name": name, "tokens": sum(lengths), "capacity": capacity, "seconds": seconds}


def our_packing(examples: Sequence[Example], length: int) -> list[dict[str, Any]]:
    found = []
    for lookahead in (32, 64, 128, 512):
        config = DataConfig(max_length=length, packing_lookahead=lookahead)
        found.append(pack(examples, config, f"ours best_fit, lookahead {lookahead}"))
    found.append(choose(examples, DataConfig(max_length=length), "ours best_fit, choice alone"))
    concat = DataConfig(max_length=length, packing_strategy="concat")
    found.append(pack(examples, concat, "ours concat"))
    return [{**row, "fill": row["tokens"] / row["capacity"]} for row in found]


def grain_packing(examples: Sequence[Example], length: int, python: Path) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/ids.npy", np.concatenate([example.input_ids for example in examples]))
        np.save(f"{folder}/ends.npy", np.cumsum([len(example) for example in examples]))
        script = Path(__file__).parent / "peers/grain_packing.py"
        command = [python, script, "--tokens", folder, "--length", str(length)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def balance(examples: Sequence[Example], length: int) -> list[dict[str, Any]]:
    """Padded batches of 8 lanes, each with every eighth example, round and round."""
    found = []
    for name, settings in BALANCED:
        config = DataConfig(packing=False, max_length=length, **settings)
        lanes = [
            make_batcher(in_turn(_endless(examples, lane)), config, 8, seed=7)
            for lane in range(LANES)
        ]
        steps = [[lane.next() for lane in lanes] for _ in range(STEPS)]
        costs = np.array([[item_capacity(item, config) for item in step] for step in steps])
        ratios = costs.max(axis=1) / costs.mean(axis=1)
        found.append(
            {
                "name": name,
                "mean": ratios.mean(),
                "p95": np.quantile(ratios, 0.95),
                "worst": ratios.max(),
                "over_the_run": costs.max(axis=1).sum() / costs.mean(axis=1).sum(),
                "fill": fill_ratio([item for step in steps for item in step], config),
            }
        )
    return found


def _endless(examples: Sequence[Example], lane: int) -> Any:
    """A lane's examples, in another order each time."""
    own = examples[lane::LANES]
    for turn in itertools.count():
        for i in np.random.default_rng([lane, turn]).permutation(len(own)):
            yield own[i]


def show(record: dict[str, Any]) -> None:
    print("\n| tokenizer | packing | fill | M tokens/s |\n|---|---|---|---|")
    for name, found in record["tokenizers"].items():
        for row in found["packing"]:
            speed = row["tokens"] / row["seconds"] / 1e6
            print(f"| {name} | {row['name']} | {row['fill']:.4f} | {speed:,.1f} |")
    print("\n| tokenizer | padded batches | max/mean | p95 | worst | over the run | fill |")
    print("|---|---|---|---|---|---|---|")
    for name, found in record["tokenizers"].items():
        for row in found["balance"]:
            numbers = [row[key] for key in ("mean", "p95", "worst", "over_the_run", "fill")]
            print(f"| {name} | {row['name']} | " + " | ".join(f"{n:.3f}" for n in numbers) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    options = parser.parse_args()
    record: dict[str, Any] = {
        "command": ["python", *sys.argv],
        "machine": machine(),
        "length": options.length,
        "tokenizers": {},
    }
    for name, place in TOKENIZERS.items():
        tokenizer = AutoTokenizer.from_pretrained(options.data / place)
        examples = examples_of(options.data, tokenizer, options.length)
        packing = our_packing(examples, options.length)
        if options.peers:
            packing += grain_packing(examples, options.length, options.peers / "grain/bin/python")
        record["tokenizers"][name] = {
            "rows": len(examples),
            "tokens": sum(map(len, examples)),
            "packing": [{k: v for k, v in row.items() if k != "waiting"} for row in packing],
            "balance": balance(examples, options.length),
        }
    show(record)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "data_packing.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
