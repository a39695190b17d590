"""How many tokens per second does one core read, tokenize, pack and collate?

    python benchmarks/data_throughput.py --data ../shared/data --output benchmarks-output

Real rows, from a JSON lines file to batches of tensors, one thread, one process; each round runs
every method once, the ratios are taken round by round. Speeds are tokens per second of the
process's own time (`process_time`), which others on the machine disturb less than the clock; the
record holds both. What is compared:

| method | what it does |
|---|---|
| `encode_batch` | the bare `tokenizers` library on the same texts, already rendered, in a list |
| `encode_batch_fast` | the same without offsets (which no mask of targets can be made of) |
| `tokenizer` | `transformers`' call on the same list |
| `loader` | ours: file -> rows -> template -> tokens and targets -> shuffle -> pack -> tensors |
| `loader, concat` | the same with `packing_strategy: concat` |
| `trl bfd`, `trl wrapped` | file -> `datasets.map` with the chat template and its mask (as TRL's |
| | SFTTrainer does) -> `pack_dataset` -> TRL's collator |

Three sets: `chat` (all real rows), `text` (real documents), `large` (many short real rows with
other numbers, a file too large to be held in memory; only ours and the limit). `--profile` prints
where the loader's time goes instead.
"""

import argparse
import cProfile
import json
import os
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(
    OMP_NUM_THREADS="1",
    RAYON_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
)

import torch
from data_rows import (
    machine,
    real_rows,
    real_texts,
    short_rows,
    shown,
    spread,
    work_folder,
    write_jsonl,
    write_rows,
)
from transformers import AutoTokenizer

from controlllm.data import DataConfig, SourceConfig
from controlllm.data.examples.templates import resolve_chat_template
from controlllm.data.loader.train_loader import TrainLoader

TOKENIZERS = {
    "minimind6400": "tokenizers/minimind6400",
    "stories260k": "checkpoints/stories260k-hf",
}
LENGTH, BATCH = 2048, 8
LARGE_ROWS = 100_000
AT_ONCE = 256
"""Texts in one call of the tokenizer; neither more nor fewer were quicker."""

Measured = tuple[int, float, float]
"""(tokens, seconds of this process's time, seconds by the clock)."""


class Clock:
    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def passed(self) -> tuple[float, float]:
        return time.process_time() - self.cpu, time.perf_counter() - self.wall


class Case:
    """One set of rows with one tokenizer.

    Args:
        rows: `chat`, `text` or `large`.
        tokenizer: its name.
        folder: where files are written.
        data: the real data.
    """

    def __init__(self, rows: str, tokenizer: str, folder: Path, data: Path) -> None:
        self.rows, self.folder = rows, folder
        self.tokenizer = AutoTokenizer.from_pretrained(data / TOKENIZERS[tokenizer])
        self.tokenizer.model_max_length = 10**9
        self.template = resolve_chat_template("plain", self.tokenizer)
        self.path = folder / f"{rows}.jsonl"
        if not self.path.exists():
            self._write(data)
        with self.path.open(encoding="utf-8") as file:
            sample = [json.loads(line) for line, _ in zip(file, range(25_000), strict=False)]
        self.texts = [self._text(row) for row in sample]
        self.tokens = 0

    def _write(self, data: Path) -> None:
        if self.rows == "chat":
            chats = [{"messages": _messages(row)} for row in real_rows(data)]
            write_rows(self.path, chats)
        elif self.rows == "text":
            write_rows(self.path, real_texts(data))
        else:
            write_jsonl(short_rows(data), self.path, LARGE_ROWS)

    def _text(self, row: dict[str, Any]) -> str:
        if "text" in row:
            return str(row["text"])
        return str(
            self.tokenizer.apply_chat_template(
                row.get("messages") or _messages(row), chat_template=self.template, tokenize=False
            )
        )

    def methods(self) -> dict[str, Callable[[], Measured]]:
        found: dict[str, Callable[[], Measured]] = {
            "encode_batch": lambda: self.bare(False),
            "encode_batch_fast": lambda: self.bare(True),
            "tokenizer": self.call,
            "loader": lambda: self.loader("best_fit"),
            "loader, concat": lambda: self.loader("concat"),
        }
        if self.rows != "large":
            found["trl bfd"] = lambda: self.trl("bfd")
            found["trl wrapped"] = lambda: self.trl("wrapped")
        return found

    def bare(self, fast: bool) -> Measured:
        library = self.tokenizer.backend_tokenizer
        encode = library.encode_batch_fast if fast else library.encode_batch
        special, self.tokens = self.rows == "text", 0
        started = Clock()
        for start in range(0, len(self.texts), AT_ONCE):
            encodings = encode(self.texts[start : start + AT_ONCE], add_special_tokens=special)
            self.tokens += sum(map(len, encodings))
        return self.tokens, *started.passed()

    def call(self) -> Measured:
        special, tokens = self.rows == "text", 0
        started = Clock()
        for start in range(0, len(self.texts), AT_ONCE):
            texts = self.texts[start : start + AT_ONCE]
            encoded = self.tokenizer(texts, add_special_tokens=special)
            tokens += sum(map(len, encoded["input_ids"]))
        return tokens, *started.passed()

    def loader(self, strategy: str, num_workers: int = 0) -> Measured:
        """One epoch, from building the loader on; of a large file as many tokens as the others."""
        large = self.rows == "large"
        source = SourceConfig(path=str(self.path), epochs=None if large else 1)
        config = DataConfig(
            train=[source],
            max_length=LENGTH,
            packing_strategy=strategy,
            chat_template="plain",
            num_workers=num_workers,
            cache_dir=str(self.folder / "cache"),
        )
        started = Clock()
        loader = TrainLoader(config, self.tokenizer, BATCH, seed=0)
        slots = -(-self.tokens // (LENGTH * BATCH)) if large else 10**9
        tokens = 0
        for _, batch in zip(range(slots), loader, strict=False):
            tokens += int((batch["origin"] >= 0).sum())
        return tokens, *started.passed()

    def trl(self, strategy: str) -> Measured:
        """What TRL's SFTTrainer does before and during training, by its own parts."""
        import datasets
        from trl.data_utils import pack_dataset
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        cache = str(self.folder / f"hf-{time.monotonic_ns()}")
        started = Clock()
        dataset = datasets.load_dataset(
            "json", data_files=str(self.path), split="train", cache_dir=cache
        )
        dataset = dataset.map(
            self._tokenize_for_trl,
            batched=self.rows == "text",
            remove_columns=dataset.column_names,
            load_from_cache_file=False,
        )
        packed = pack_dataset(dataset, LENGTH, strategy, {"load_from_cache_file": False})
        loader = torch.utils.data.DataLoader(
            packed.with_format(None),
            batch_size=BATCH,
            shuffle=True,
            collate_fn=DataCollatorForLanguageModeling(
                pad_token_id=self.tokenizer.eos_token_id, padding_free=strategy == "bfd"
            ),
        )
        tokens = 0
        for batch in loader:
            tokens += batch["input_ids"].numel()
        return tokens, *started.passed()

    def _tokenize_for_trl(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.rows == "text":
            eos = self.tokenizer.eos_token
            texts = [text + eos for text in row["text"]]
            return {"input_ids": self.tokenizer(texts)["input_ids"]}
        done = self.tokenizer.apply_chat_template(
            row["messages"],
            chat_template=self.template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return {"input_ids": done["input_ids"], "assistant_masks": done["assistant_masks"]}


def _messages(row: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]


def measure(case: Case, repetitions: int) -> dict[str, list[Measured]]:
    methods = case.methods()
    for method in methods.values():  # Once for imports and caches; not kept.
        method()
    results: dict[str, list[Measured]] = {name: [] for name in methods}
    for _ in range(repetitions):
        for name, method in methods.items():
            results[name].append(method())
    return results


def speeds(results: dict[str, list[Measured]]) -> dict[str, list[float]]:
    return {name: [tokens / cpu for tokens, cpu, _ in runs] for name, runs in results.items()}


def table(title: str, results: dict[str, list[Measured]]) -> str:
    rates = speeds(results)
    text = f"**{title}**\n\n| method | tokens/s, thousands | to `encode_batch` | loader to it |\n"
    text += "|---|---:|---:|---:|\n"
    for name, values in rates.items():
        limit = [a / b for a, b in zip(values, rates["encode_batch"], strict=True)]
        ours = [b / a for a, b in zip(values, rates["loader"], strict=True)]
        thousands = [value / 1000 for value in values]
        text += f"| {name} | {shown(thousands, 0)} | {shown(limit)} | {shown(ours)} |\n"
    return text


def profile(case: Case) -> None:
    case.bare(False)
    case.loader("best_fit")
    profiler = cProfile.Profile()
    tokens, seconds, _ = profiler.runcall(case.loader, "best_fit")
    print(f"{tokens:,} tokens in {seconds:.2f} s under the profiler")
    stats = pstats.Stats(profiler)
    stats.sort_stats("cumulative").print_stats(45)
    stats.sort_stats("tottime").print_stats(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data")
    parser.add_argument("--data_dir", type=Path, help="where files are made and kept")
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rows", nargs="+", default=["chat", "text", "large"])
    parser.add_argument("--tokenizers", nargs="+", default=list(TOKENIZERS))
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": machine(), "command": sys.argv, "results": {}}
    text = ""
    with work_folder(options.data_dir) as folder:
        for tokenizer in options.tokenizers:
            for rows in options.rows:
                case = Case(rows, tokenizer, Path(folder), options.data)
                if options.profile:
                    print(f"--- {rows}, {tokenizer}")
                    profile(case)
                    continue
                results = measure(case, options.repetitions)
                part = table(f"{rows}, {tokenizer}, {case.tokens:,} tokens", results)
                print(part, flush=True)
                text += part + "\n"
                record["results"][f"{rows}/{tokenizer}"] = {
                    name: {"tokens_per_s": spread(values), "runs": results[name]}
                    for name, values in speeds(results).items()
                }
    if not options.profile:
        options.output.mkdir(parents=True, exist_ok=True)
        target = options.output / "data_throughput.json"
        target.write_text(json.dumps(record, indent=1) + "\n")
        target.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
