"""Do TRL's trainers under DeepSpeed and DDP train what they train in one process?

    python benchmarks/backends_trl.py --data ../shared/data --output benchmarks-output

A small real base, expanded, learns GSM8K by `ControlLLMSFTTrainer` and `ControlLLMDPOTrainer`: in
one process, and in two (gloo, CPU) by DDP and by `TrainingArguments(deepspeed=...)` with ZeRO-2 and
ZeRO-3. Rows are cut to one length, so that each process has as many tokens: the divergence is a
mean over a process's own. Runs on uneven rows show what that makes, and that it is no other than
what as many micro-batches make in one process. Counted are the largest differences from the one
process: of losses and gradient norms, relative; of the weights in the sidecar that is saved at the
end, absolute.
"""

import argparse
import json
import os
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", DS_ACCELERATOR="cpu")

import torch
import torch.distributed as dist
from backends import failure_of, write_record
from safetensors.torch import load_file

STEPS, ROWS = 10, 4


@dataclass(frozen=True)
class TrlRun:
    """What is trained.

    Attributes:
        name: what the table calls it.
        is_dpo: preferences, or else texts.
        micro_batches: of a step.
        alone: micro-batches of a step of the one process, if others.
        even: rows are cut to one length.
        divergence: its weight.
        own_reference: DPO's reference is a second base, instead of the one inside.
    """

    name: str
    is_dpo: bool = False
    micro_batches: int = 1
    alone: int | None = None
    even: bool = True
    divergence: float = 1.0
    own_reference: bool = False


RUNS = [
    TrlRun("SFT"),
    TrlRun("SFT, 2 micro-batches", micro_batches=2),
    TrlRun("SFT, uneven rows, no divergence", even=False, divergence=0.0),
    TrlRun("SFT, uneven rows", even=False),
    TrlRun("SFT, uneven rows, beside 2 micro-batches", alone=2, even=False),
    TrlRun("DPO", is_dpo=True),
    TrlRun("DPO, 2 micro-batches", is_dpo=True, micro_batches=2),
    TrlRun("DPO, a second base as reference", is_dpo=True, own_reference=True),
]
WAYS: dict[str, dict[str, Any] | None] = {
    "ddp": None,
    "zero2": {"stage": 2},
    "zero3": {"stage": 3, "stage3_param_persistence_threshold": 2},
}
"""ZeRO's settings; small parameters, too, are cut."""


def expanded(options: argparse.Namespace, divergence: float) -> Any:
    """The base with two more blocks, whose copies differ, so that the divergence pulls."""
    from controlllm import expand

    model = expand(base(options), num_blocks=2, interpolator="dlerp", divergence_weight=divergence)
    with torch.no_grad():
        for block in model.blocks.values():
            for parameter in block.expanded.parameters():
                parameter.mul_(1.02)
    return model


def base(options: argparse.Namespace) -> Any:
    """As users load it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)


def rows(options: argparse.Namespace, is_dpo: bool) -> Any:
    """Questions and answers, all longer than `--length` tokens; what is rejected is another's."""
    from datasets import Dataset

    lines = (options.data / "sft/gsm8k/test.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in lines]
    # A token of this tokenizer is seldom longer than four characters.
    long = [p for p in pairs if min(len(p["question"]), len(p["answer"])) > 4 * options.length]
    chosen = long[: STEPS * ROWS]
    if not is_dpo:
        return Dataset.from_list([{"text": f"{p['question']} {p['answer']}"} for p in chosen])
    others = [*chosen[1:], chosen[0]]
    return Dataset.from_list(
        [
            {
                "prompt": pair["question"][:60],
                "chosen": pair["answer"],
                "rejected": other["answer"],
            }
            for pair, other in zip(chosen, others, strict=True)
        ]
    )


def train_as_rank(
    options: argparse.Namespace, folder: Path, run: TrlRun, zero: dict[str, Any] | None
) -> int:
    """What each process does; the first writes the log."""
    from controlllm.train.parallel.deepspeed_config import prepare_deepspeed

    rank, processes = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    sharing: dict[str, Any] = {}
    if processes > 1:
        dist.init_process_group("gloo")
    if zero is not None:
        prepare_deepspeed(on_cpu=True, local_rank=rank)
        deepspeed = {"zero_optimization": zero, "train_micro_batch_size_per_gpu": "auto"}
        deepspeed["gradient_accumulation_steps"] = "auto"
        sharing = {"deepspeed": deepspeed, "accelerator_config": {"use_configured_state": True}}
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": ROWS // processes // run.micro_batches,
        "gradient_accumulation_steps": run.micro_batches,
        "max_steps": STEPS,
        "max_length": options.length if run.even else None,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_steps": STEPS,
        "save_only_model": True,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        **sharing,
    }
    trainer = make_trainer(options, run, settings)
    trainer.train()
    if rank == 0:
        log = [row for row in trainer.state.log_history if "loss" in row]
        (folder / "log.json").write_text(json.dumps(log))
    if processes > 1:
        dist.destroy_process_group()
    return 0


def make_trainer(options: argparse.Namespace, run: TrlRun, settings: dict[str, Any]) -> Any:
    """Of ours; the model first, as ZeRO-3 cuts what is loaded once its settings are known."""
    from transformers import AutoTokenizer
    from trl import DPOConfig, SFTConfig  # type: ignore[attr-defined]  # its names are lazy

    from controlllm.integrations.trl import ControlLLMDPOTrainer, ControlLLMSFTTrainer

    model = expanded(options, run.divergence)
    given: dict[str, Any] = {
        "train_dataset": rows(options, run.is_dpo),
        "processing_class": AutoTokenizer.from_pretrained(options.model),
    }
    if run.own_reference:
        given["ref_model"] = base(options)
    if run.is_dpo:
        return ControlLLMDPOTrainer(model, args=DPOConfig(**settings, beta=0.3), **given)
    return ControlLLMSFTTrainer(model, args=SFTConfig(**settings), **given)


def measure(options: argparse.Namespace, folder: Path, run: TrlRun) -> list[dict[str, Any]]:
    """One run in every way, compared with one process."""

    def failure(way: str, run: TrlRun, processes: int, zero: dict[str, Any] | None) -> str | None:
        (folder / way).mkdir(parents=True)
        call = partial(train_as_rank, options, folder / way, run, zero)
        return failure_of(call, processes, folder / way / "logs")

    one = replace(run, micro_batches=run.alone or run.micro_batches)
    if why := failure("alone", one, 1, None):
        raise RuntimeError(why)
    found = []
    for way, zero in WAYS.items():
        row = {"run": run.name, "way": way}
        if why := failure(way, run, 2, zero):
            found.append({**row, "failed": why})
        else:
            found.append({**row, **differences(folder / "alone", folder / way)})
        print(json.dumps(found[-1]), flush=True)
    return found


def differences(expected: Path, found: Path) -> dict[str, Any]:
    """The largest ones of all steps, and of the saved sidecars.

    Raises:
        ValueError: they are not of as many steps, or not the same tensors.
    """
    ours, theirs = (json.loads((f / "log.json").read_text()) for f in (expected, found))
    place = Path(f"checkpoint-{STEPS}") / "sidecar" / "sidecar.safetensors"
    a, b = (load_file(folder / place) for folder in (expected, found))
    if len(ours) != len(theirs) or a.keys() != b.keys():
        raise ValueError(f"{len(ours)} and {len(theirs)} steps, {len(a)} and {len(b)} tensors")
    result: dict[str, Any] = {
        title: max(abs(y[name] - x[name]) / abs(x[name]) for x, y in zip(ours, theirs, strict=True))
        for title, name in (("loss", "loss"), ("gradient norm", "grad_norm"))
    }
    result["weights"] = max((b[name] - tensor).abs().max().item() for name, tensor in a.items())
    return {"losses": [row["loss"] for row in theirs], **result}


def table(found: list[dict[str, Any]]) -> str:
    """One line for each run and way."""
    lines = ["| run | way | loss | gradient norm | weights |"]
    lines.append("|---|---|---:|---:|---:|")
    for row in found:
        cells = [row["run"], row["way"]]
        if "failed" in row:
            cells += [f"failed: {row['failed'].splitlines()[-1]}", "", ""]
        else:
            cells += [f"{row[title]:.1e}" for title in ("loss", "gradient norm", "weights")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    options = parser.parse_args()
    options.model = options.data / "checkpoints" / "stories260k-hf"

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    found = []
    with tempfile.TemporaryDirectory() as name:
        for number, run in enumerate(RUNS):
            found += measure(options, Path(name) / str(number), run)
    write_record(options.output, "backends-trl.json", rows=found)
    print(table(found))


if __name__ == "__main__":
    main()
