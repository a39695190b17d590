"""Kills a run again and again, and sees whether it ends as if nobody had.

    python benchmarks/soak.py --kills 60 --ranks 2 --output benchmarks-output

A pico Llama on bytes trains in several processes (gloo, CPU). At random moments, half of them while
a checkpoint is being written, one process, the leader or all are killed (SIGKILL); then the same
run is started again. After each kill every folder named `checkpoint-N` must be whole; at the end of
each run its metrics and its last checkpoint must be those of the undisturbed run, bit for bit.
Prints a table and writes `soak.json`. `tests/distributed/test_faults.py` does the same three times.
"""

import argparse
import faulthandler
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from controlllm.checkpoint import load_checkpoint, newest_checkpoint
from controlllm.checkpoint.training.manifest import verify_manifest
from controlllm.train import RunConfig, train

FORK = multiprocessing.get_context("fork")
WHO = ("one", "leader", "all")
SECONDS = 60.0
"""No wait is longer; a healthy run needs a fraction."""
TIMED = ("seconds", "tokens_per_second", "time", "memory", "mfu", "hfu", "tflops", "share")
"""Parts of the names of metrics that say how fast it went, not what was learned."""


@dataclass
class Kill:
    """One kill, and what came of it.

    Attributes:
        who: one, leader or all.
        step: the last step that was recorded before it.
        saving: whether a checkpoint was being written.
        seconds: until the processes that were not killed had ended.
        resumed: the step that the next start went on from (0 = from the beginning).
    """

    who: str
    step: int
    saving: bool
    seconds: float
    resumed: int = 0


def start_ranks(call: Callable[[], Any], count: int, logs: Path) -> list[Any]:
    """Start processes as a launcher does: by variables. What they print goes to a file each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs.mkdir(parents=True, exist_ok=True)
    processes = []
    for rank in range(count):
        place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
        variables = {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = FORK.Process(target=_as_rank, args=(call, variables, logs / f"rank-{rank}.log"))
        process.start()
        processes.append(process)
    return processes


def _as_rank(call: Callable[[], Any], variables: dict[str, Any], log: Path) -> None:
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # Not those of a test.
    faulthandler.register(signal.SIGUSR2, file=2)  # Where a process hangs that does not end.
    code = 1
    try:
        code = call() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def wait_for(processes: list[Any], seconds: float = SECONDS) -> list[int]:
    """The exit codes; whoever has not ended by then is killed.

    Raises:
        TimeoutError: there was one.
    """
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    stuck = [i for i, process in enumerate(processes) if process.is_alive()]
    for number in stuck:
        os.kill(processes[number].pid, signal.SIGUSR2)
    time.sleep(0.5 * bool(stuck))
    for process in processes:
        process.kill()
        process.join()
    if stuck:
        raise TimeoutError(f"processes {stuck} did not end within {seconds:g} s")
    return [process.exitcode for process in processes]


class Soak:
    """Trains one run under kills.

    Args:
        run: what to train; its folder may be there already.
        ranks: how many processes.
        chance: what decides who is killed, and when.
        logs: a folder for what the processes print.
    """

    def __init__(self, run: RunConfig, ranks: int, chance: random.Random, logs: Path) -> None:
        self.run = run
        self.folder = Path(run.training.output_dir)
        self.ranks = ranks
        self.chance = chance
        self.logs = logs
        self.kills: list[Kill] = []

    def until_done(self, most: int) -> None:
        """Start, kill, start again, at most so often, until the run has come to its end."""
        while True:
            before = record_of(self.folder)
            processes = start_ranks(self._train, self.ranks, self.logs)
            if self.kills and not self.kills[-1].resumed:
                self.kills[-1].resumed = self._newest_step()
            killed = len(self.kills) < most and self._kill(processes, before)
            codes = wait_for(processes)
            self.require_whole()
            if not killed:
                assert codes == [0] * self.ranks, self.printed()
                return

    def printed(self) -> str:
        """What the processes of the last start printed."""
        return "\n".join(log.read_text() for log in sorted(self.logs.glob("*.log")))

    def require_whole(self) -> None:
        """Every folder with the name of a checkpoint is one."""
        for folder in self.folder.glob("checkpoint-*"):
            verify_manifest(folder)

    def _train(self) -> int:
        return int(train(self.run).stopped_because != "max_steps")

    def _newest_step(self) -> int:
        steps = [int(path.name.split("-")[1]) for path in self.folder.glob("checkpoint-*")]
        return max(steps, default=0)

    def _kill(self, processes: list[Any], before: int) -> bool:
        """Kill some at a moment of chance; False where all had ended before."""
        target = self._newest_step() + self.chance.randrange(1, 9)
        during_save = self.chance.random() < 0.5
        while (
            record_of(self.folder) == before
            or self._last_step() < target
            or (during_save and not self._writing())
        ):
            if not all(process.is_alive() for process in processes):
                return False
            time.sleep(0.001)
        time.sleep(self.chance.random() * (0.01 if during_save else 0.03))
        who = self.chance.choice(WHO)
        victims = {"one": [self.chance.randrange(1, self.ranks)], "leader": [0]}.get(
            who, range(self.ranks)
        )
        if not all(process.is_alive() for process in processes):
            return False
        kill = Kill(who, self._last_step(), self._writing(), 0.0)
        for victim in victims:
            os.kill(processes[victim].pid, signal.SIGKILL)
        began = time.monotonic()
        try:
            wait_for(processes)
        except TimeoutError as error:
            raise TimeoutError(f"{error} after {kill}\n{self.printed()}") from error
        kill.seconds = round(time.monotonic() - began, 2)
        self.kills.append(kill)
        return True

    def _last_step(self) -> int:
        return max((row["step"] for row in rows_of(self.folder)), default=0)

    def _writing(self) -> bool:
        return any(self.folder.glob(".checkpoint-*.writing-*"))


def record_of(folder: Path) -> int:
    """Which process writes the records: each makes the file anew as it begins."""
    path = folder / "metrics.jsonl"
    return path.stat().st_ino if path.is_file() else 0


def rows_of(folder: Path) -> Iterator[dict[str, Any]]:
    """What is recorded so far; a line may be half written."""
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            yield json.loads(line)
        except ValueError:
            return


def learned(folder: Path) -> list[dict[str, Any]]:
    """The records without what the clock says."""
    return [
        {name: value for name, value in row.items() if not any(part in name for part in TIMED)}
        for row in rows_of(folder)
    ]


def require_same(folder: Path, other: Path) -> None:
    """Two runs have the same records, and the same last checkpoint, bit for bit."""
    assert learned(folder) == learned(other), f"{folder} and {other} have other losses"
    paths = [newest_checkpoint(folder), newest_checkpoint(other)]
    a, b = (load_checkpoint(path) for path in paths if path is not None)
    assert a.step == b.step
    ours, theirs = {**a.tensors, **a.optimizer_tensors}, {**b.tensors, **b.optimizer_tensors}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert a.loader == b.loader


def make_base(folder: Path) -> None:
    """A pico Llama, and a tokenizer with one token for each character, on the disk."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {chr(code): code - 29 for code in range(32, 127)} | {"<s>": 0, "</s>": 1, "\n": 2}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_config(place: Path, name: str, steps: int = 40) -> RunConfig:
    """A run of that name in `place`, where the base and the texts are."""
    text, held_out = str(place / "new.txt"), str(place / "held_out.txt")
    return RunConfig.from_dict(
        {
            "model": {"model_name_or_path": str(place / "base"), "device": "cpu"},
            "expansion": {"num_blocks": 2},
            "data": {
                "train": [{"path": text, "name": "new"}],
                "learn": [{"path": held_out, "name": "held_out"}],
                "max_length": 32,
                "cache_dir": str(place / "cache"),
            },
            "training": {
                "output_dir": str(place / name),
                "max_steps": steps,
                "per_device_train_batch_size": 2,
                "learning_rate": 1e-2,
                "eval_steps": 10,
                "save_steps": 3,
            },
            "logging": {"logging_steps": 1, "report_to": ["jsonl"]},
        }
    )


def prepare(place: Path) -> None:
    """Write the base and the texts."""
    make_base(place / "base")
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "lay", "by", "fire", "while"]
    chance = random.Random(0)
    lines = [" ".join(chance.choices(words, k=9)) for _ in range(400)]
    (place / "new.txt").write_text("\n".join(lines))
    (place / "held_out.txt").write_text("\n".join(lines[:4]))


def table(kills: list[Kill]) -> str:
    """How often whom, how often while saving, and how long the others took to end."""
    rows = ["| killed | times | while saving | seconds until the others ended, at most |"]
    rows.append("|---|---:|---:|---:|")
    for who in WHO:
        of_them = [kill for kill in kills if kill.who == who]
        saving = sum(kill.saving for kill in of_them)
        slowest = max((kill.seconds for kill in of_them), default=0.0)
        rows.append(f"| {who} | {len(of_them)} | {saving} | {slowest:.1f} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills-per-run", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chance, kills, runs = random.Random(arguments.seed), list[Kill](), 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place)
        straight = run_config(place, "straight")
        Soak(straight, arguments.ranks, chance, place / "logs").until_done(0)
        while len(kills) < arguments.kills:
            run = run_config(place, "run")
            soak = Soak(run, arguments.ranks, chance, place / "logs")
            soak.until_done(min(arguments.kills_per_run, arguments.kills - len(kills)))
            require_same(soak.folder, Path(straight.training.output_dir))
            assert not list(soak.folder.glob(".*")), list(soak.folder.glob(".*"))
            shutil.rmtree(soak.folder)
            kills += soak.kills
            runs += 1
            print(f"{len(kills)} kills in {runs} runs: all as the undisturbed run", flush=True)
    print(table(kills))
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = {
        "ranks": arguments.ranks,
        "seed": arguments.seed,
        "runs": runs,
        "who": Counter(kill.who for kill in kills),
        "kills": [asdict(kill) for kill in kills],
    }
    (arguments.output / "soak.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
