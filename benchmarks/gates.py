"""Does a gate that knows old text from new beat one number? Tried on a real base, and written down.

    python benchmarks/gates.py run --data ../shared/data --output benchmarks-output/gates
    python benchmarks/gates.py parts --data ../shared/data --output benchmarks-output/gates
    python benchmarks/gates.py table --output benchmarks-output/gates

Base: stories260k (old domain: TinyStories). Shifts: Shakespeare, GSM8K. Each arm of `ARMS` is
trained by the preset `retain` with what the arm says; one folder a run, and what is there is not
done again. The dial is chosen on text that the base wrote (KL) or on a part of the old domain, and
told on text that nothing was chosen on: new, old, a third domain that nobody saw (WikiText), and
documents whose first half is new and second half is old, or the other way round, each half by
itself. `parts`: what an alpha for each block and for the ends adds to one number, in runs that are
done; there the learn loss is taken from a second part of the new domain.
"""

import argparse
import gzip
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from learn_and_forget import DOMAINS, LESSON, about, write
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from controlllm.checkpoint import load_model
from controlllm.common.losses import IGNORE_INDEX, masked_sum, target_mask
from controlllm.data import REHEARSAL, Batch, DataConfig, SourceConfig, eval_batches
from controlllm.evaluate import (
    RetentionReport,
    format_table,
    measure_retention,
)
from controlllm.evaluate.forgetting.retention import measure_settings
from controlllm.evaluate.own_text import OWN_TEXT, OwnTextConfig, Writer, write_own_text
from controlllm.expansion.method.interpolators import INTERPOLATORS, TokenGate
from controlllm.train import RunConfig, train
from controlllm.train.setup import ready
from controlllm.train.step.losses import Counts, StepLoss, StepReport

LENGTH = 256
BUDGETS = {"own": (0.01, 0.1), "old_chosen": (0.01,)}
"""What the dial may cost on the sets that it is chosen on: KL on own text, rise of loss on old."""
GRID = (0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
PARTS_BUDGET = 0.01
PARTS_TOLD = ("new", "old", "own", "third")
MIXED = ("new_then_old:new", "new_then_old:old", "old_then_new:new", "old_then_new:old")
TOLD = ("new", "old", "third", *MIXED)


class PushedGate(TokenGate):
    """A token gate that keeps what it said last, with its graph, for the push."""

    opened: Tensor

    def read(self, x: Tensor) -> Tensor:
        """What the gate reads of a block's input (B, T, D)."""
        return unit(x)

    def gate(self, x: Tensor, pretrained: Tensor, expanded: Tensor) -> Tensor:
        self.opened = self.score(self.read(x)).sigmoid()
        return self.opened


@INTERPOLATORS.register("gate")
@final
class Gate(PushedGate):
    """Lerp with alpha_t = sigmoid(w·norm(x_t) + b); the norm is of root mean square 1."""


@INTERPOLATORS.register("gate_prefix")
@final
class PrefixGate(PushedGate):
    """The same of the mean of norm(x) over the tokens so far; rows are one document each here."""

    def read(self, x: Tensor) -> Tensor:
        tokens = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
        return unit(unit(x).cumsum(1) / tokens[:, None])


class PushedLoss(StepLoss):
    """A step's loss with the mean alpha on rehearsed tokens, times a weight, beside it."""

    push = 0.0

    def micro_batch(
        self, batch: Mapping[str, Any], counts: Counts, report: StepReport | None = None
    ) -> Tensor:
        loss = super().micro_batch(batch, counts, report)
        if not self.push:
            return loss
        model: Any = self.model
        labels_BT, rehearsed = batch["labels"], batch["origin"] == REHEARSAL
        mask_BT = target_mask(labels_BT.masked_fill(~rehearsed, IGNORE_INDEX))
        gates = [block.interpolator.opened for block in model.blocks.values()]
        opened = sum(masked_sum(gate.squeeze(-1), mask_BT)[0] for gate in gates) / len(gates)
        pushed = self.push * model.expansion.dial * opened / max(counts.rehearsed, 1)
        if report is not None:
            before = report.losses.get("gate_push", 0.0)
            report.losses["gate_push"] = before + pushed.detach()
        return loss + pushed


ready.StepLoss = PushedLoss  # a trial: the library has no such option


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6)


def gated(name: str, push: float, prompts: str | None = None) -> dict[str, Any]:
    """An arm with a gate: nearly shut at the start, opened by the loss, pushed shut on own text."""
    return {
        "push": push,
        "expansion": {"interpolator": name, "alpha": 0.1, "divergence": "none"},
        "rehearsal": {"prompts": prompts},
        "training": {"alpha_sampling": [0.4, 1.0], "interpolator_learning_rate": 1e-2},
    }


ARMS: dict[str, dict[str, Any]] = {
    "one number": {},
    "one number, low": {
        "expansion": {"divergence": "none"},
        "training": {"alpha_sampling": [0.05, 0.3]},
    },
    "token": gated("gate", 0.3),
    "prefix": gated("gate_prefix", 0.3),
    "token, push 1": gated("gate", 1.0),
    "one number + other": {"rehearsal": {"prompts": "other"}},
    "token + other": gated("gate", 0.3, "other"),
    "token + random": gated("gate", 0.3, "random"),
}
"""`low`: alpha is drawn from about what gates come to. `+ random`, `+ other`: three quarters of the
rehearsed sequences begin with 8 to 192 random tokens, or with the beginning of a request and its
answer of Dolly; the base writes on."""


def make_files(data: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Texts of all sets and the prompts, by name; nothing is in two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    old = (data / "text/tinystories_excerpt/tinystories.txt").read_text()
    half, size = len(old) // 2, 12_000
    texts = {
        "old_chosen": old[half : half + size],
        "old": old[half + size : half + 2 * size],
        "old_mixed": old[half + 2 * size : half + 3 * size],
        "third": (data / "text/wikitext2_valid_test/test.txt").read_text()[:size],
    }
    files = {name: str(write(folder / f"{name}.txt", text)) for name, text in texts.items()}
    for domain, make in DOMAINS.items():
        made = make(data, folder)
        train_text = made["train"].read_text()[:600_000]  # more than the steps read
        files[f"{domain}-train"] = str(write(folder / f"{domain}-train.txt", train_text))
        text = made["learn"].read_text()
        for name, part in {"new": text[:12_000], "new_mixed": text[12_000:24_000]}.items():
            files[f"{domain}-{name}"] = str(write(folder / f"{domain}-{name}.txt", part))
    files |= {name: make_prompts(name, data, folder, tokenizer) for name in ("random", "other")}
    return files


def make_prompts(kind: str, data: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """A file of prompts: one line each, 8 to 192 tokens, every fourth about one token."""
    chance = random.Random(0)
    if kind == "other":
        packed = (data / "sft/dolly2k/dolly_train.json.gz").read_bytes()
        # Their `input` is left out: it was taken from Wikipedia, as the third domain was.
        rows = [
            f"{row['instruction']} {row['output']}" for row in json.loads(gzip.decompress(packed))
        ]
        texts = [text for text in rows if len(text) > 600][:256]
    else:
        names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        words = [i for i, name in enumerate(names) if not name.startswith("<")]
        texts = [tokenizer.decode(chance.choices(words, k=256)) for _ in range(256)]
    lines = []
    for number, text in enumerate(texts):
        line, length = " ".join(text.split()), chance.randint(8, 192) if number % 4 else 2
        while len(tokenizer(line).input_ids) > length and len(line) > 1:
            line = line[: max(1, len(line) * 9 // 10)]
        lines.append(line)
    return str(write(folder / f"{kind}-prompts.txt", "\n".join(lines)))


def mixed_batches(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], told: int
) -> list[Batch]:
    """Documents of two halves of equal length; only the half `told` (0 or 1) is measured."""
    half = LENGTH // 2
    rows = [[*a[:half], *b[1 : half + 1]] for a, b in zip(first, second, strict=False)]
    batches = []
    for start in range(0, len(rows), 8):
        ids = torch.tensor(rows[start : start + 8])
        labels = ids.clone()
        labels[:, slice(half, None) if told == 0 else slice(0, half)] = -100
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return batches


def sequences(path: str, tokenizer: PreTrainedTokenizerBase, number: int) -> list[list[int]]:
    """Pieces of a text in tokens, each as long as a row and begun with BOS."""
    ids = tokenizer(Path(path).read_text(), add_special_tokens=False).input_ids
    size = LENGTH - 1
    rows = [[tokenizer.bos_token_id, *ids[i : i + size]] for i in range(0, len(ids) - size, size)]
    return rows[:number]


def make_sets(
    options: argparse.Namespace, files: Mapping[str, str], domain: str, model: Any, tokenizer: Any
) -> dict[str, list[Batch]]:
    """All sets of a shift, in batches."""
    config = DataConfig(max_length=LENGTH, packing=False)
    paths = {"new": files[f"{domain}-new"]} | {n: files[n] for n in ("old", "old_chosen", "third")}
    sets = {
        name: eval_batches(SourceConfig(path=path), tokenizer, config, 8)
        for name, path in paths.items()
    }
    settings, writer = (
        OwnTextConfig(num_sequences=32, length=LENGTH, chat=False),
        Writer.base(model),
    )
    own = write_own_text(writer, tokenizer, settings, config, options.output / "own_text")
    sets["own"] = eval_batches(own[OWN_TEXT], tokenizer, config, 8)
    new, old = (sequences(files[n], tokenizer, 24) for n in (f"{domain}-new_mixed", "old_mixed"))
    for told in (0, 1):
        sets[f"new_then_old:{'new' if told == 0 else 'old'}"] = mixed_batches(new, old, told)
        sets[f"old_then_new:{'old' if told == 0 else 'new'}"] = mixed_batches(old, new, told)
    return sets


def chosen_dials(model: Any, sets: Mapping[str, list[Batch]]) -> dict[str, float]:
    """For each budget the largest dial that keeps to it; between two of the grid on their line."""
    found = {}
    for name, budgets in BUDGETS.items():
        turns = [partial(model.set_alpha, dial) for dial in GRID]
        reports = measure_settings(model, sets[name], turns)
        costs = [0.0, *(r.kl if name == "own" else r.forgetting for r in reports)]
        for budget in budgets:
            above = [i for i, cost in enumerate(costs) if cost > budget]
            dial = 1.0
            if above:
                low, high = costs[above[0] - 1], costs[above[0]]
                left, right = (0.0, *GRID)[above[0] - 1], (0.0, *GRID)[above[0]]
                dial = left + (right - left) * (budget - low) / (high - low)
            found[f"{name} {budget:g}"] = dial
    return found


def measured(model: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """Losses on one set at the dial as it stands; `open` is the mean alpha of the blocks."""
    report = measure_retention(model, batches)
    dial = model.expansion.dial
    gates = model.expansion.mean_alpha
    opened = dial * statistics.mean(gates.values()) if model.has_gates else dial
    return told(report) | {"open": opened}


def told(report: RetentionReport) -> dict[str, float]:
    return {
        "base": report.base_loss,
        "loss": report.loss,
        "rise": report.forgetting,
        "kl": report.kl,
    }


def run_config(
    options: argparse.Namespace, files: Mapping[str, str], arm: str, domain: str, seed: int
) -> RunConfig:
    values = ARMS[arm]
    cache = str(options.output / "rehearsal")
    rehearsal = {"length": LENGTH, "cache_dir": cache, **values.get("rehearsal", {})}
    if rehearsal.get("prompts"):
        rehearsal["prompts"] = files[rehearsal["prompts"]]
    return RunConfig.from_dict(
        {
            "preset": "retain",
            "model": {"model_name_or_path": str(options.base), "attn_implementation": "sdpa"},
            "expansion": {"layers": [0, 1, 2, 3, 4], **values.get("expansion", {})},
            "rehearsal": rehearsal,
            "data": {
                "train": [{"path": files[f"{domain}-train"]}],
                "max_length": LENGTH,
                "packing": False,
            },
            "training": {
                "output_dir": str(folder_of(options, arm, domain, seed) / "run"),
                "seed": seed,
                "max_steps": options.steps,
                "learning_rate": 3e-3,
                **LESSON,
                "save_steps": 100,
                "save_total_limit": 1,
                **values.get("training", {}),
            },
            "logging": {"report_to": ["jsonl"]},
        }
    )


def folder_of(options: argparse.Namespace, arm: str, domain: str, seed: int) -> Path:
    return options.output / domain / arm.replace(" ", "_") / str(seed)


def cell(
    options: argparse.Namespace, files: Mapping[str, str], arm: str, domain: str, seed: int
) -> None:
    """Train and measure one run, where that is not done yet."""
    folder = folder_of(options, arm, domain, seed)
    path = folder / "result.json"
    if path.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    PushedLoss.push = ARMS[arm].get("push", 0.0)
    result = train(run_config(options, files, arm, domain, seed))
    if result.stopped_because == "preempted":
        raise SystemExit("stopped by a signal; the same command goes on from here.")
    model: Any = result.model
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    sets = make_sets(options, files, domain, model, tokenizer)
    rows = {}
    for label, dial in chosen_dials(model, sets).items():
        model.set_alpha(dial)
        rows[label] = {"dial": dial} | {n: measured(model, sets[n]) for n in (*TOLD, *BUDGETS)}
    found = {"arm": arm, "domain": domain, "seed": seed, "dials": rows, "about": about()}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(table([found], "old_chosen 0.01"), flush=True)


class Ratios:
    """Alphas of the parts of a model: ratios, and the common factor that a budget allows."""

    def __init__(self, model: Any, learn: list[Batch], own: list[Batch]) -> None:
        self.model, self.learn, self.own = model, learn, own
        self.parts = [*model.blocks, -1]  # -1: the ends
        self.factor = 0.1

    def search(self) -> dict[int, float]:
        """From equal ratios: halve or double one at a time while that learns more, twice round."""
        ratios = dict.fromkeys(self.parts, 1.0)
        best, alphas = self.within(ratios)
        for _ in range(2):
            for part in self.parts:
                for by in (0.5, 2.0):
                    tried = ratios | {part: ratios[part] * by}
                    loss, found = self.within(tried)
                    if loss < best:
                        best, alphas, ratios = loss, found, tried
                        break
        return alphas

    def within(self, ratios: dict[int, float]) -> tuple[float, dict[int, float]]:
        """The learn loss at the largest factor within the budget, and the alphas there."""
        factors = [self.factor * by for by in (0.5, 0.7, 1.0, 1.4, 2.0)]
        turns = [partial(self.model.set_alpha, scaled(ratios, factor)) for factor in factors]
        costs = [report.kl for report in measure_settings(self.model, self.own, turns)]
        costs, factors = [0.0, *costs], [0.0, *factors]
        above = next((i for i, cost in enumerate(costs) if cost > PARTS_BUDGET), len(costs) - 1)
        low, high = costs[above - 1], costs[above]
        share = min(1.0, (PARTS_BUDGET - low) / (high - low))
        self.factor = factors[above - 1] + share * (factors[above] - factors[above - 1])
        alphas = scaled(ratios, self.factor)
        (report,) = measure_settings(
            self.model, self.learn, [partial(self.model.set_alpha, alphas)]
        )
        return report.loss, alphas


def scaled(ratios: dict[int, float], factor: float) -> dict[int, float]:
    return {part: min(1.0, ratio * factor) for part, ratio in ratios.items()}


def parts_cell(
    options: argparse.Namespace, files: Mapping[str, str], arm: str, domain: str, seed: int
) -> None:
    """One number and alphas by part, within a budget on own text, of a run that is done."""
    folder = folder_of(options, arm, domain, seed)
    path = folder / "parts.json"
    if path.is_file() or not (folder / "result.json").is_file():
        return
    model, tokenizer = load_model(folder / "run")
    sets = make_sets(options, files, domain, model, tokenizer)
    config = DataConfig(max_length=LENGTH, packing=False)
    chosen = SourceConfig(path=files[f"{domain}-new_mixed"])
    search = Ratios(model, eval_batches(chosen, tokenizer, config, 8, limit=24), sets["own"])
    equal = dict.fromkeys(search.parts, 1.0)
    for _ in range(3):  # The factor finds its place.
        _, one = search.within(equal)
    found: dict[str, Any] = {"arm": arm, "domain": domain, "seed": seed, "about": about()}
    for name, alphas in (("one number", one), ("by part", search.search())):
        model.set_alpha(alphas)
        reports = {n: measure_retention(model, sets[n]) for n in PARTS_TOLD}
        told_alphas = " ".join(f"{part}:{alpha:.3f}" for part, alpha in alphas.items())
        found[name] = {"alpha": told_alphas} | {n: told(r) for n, r in reports.items()}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(parts_table([found]), flush=True)


def parts_table(results: Sequence[Mapping[str, Any]]) -> str:
    """A row for each run and way: what was learned, forgotten, and which alphas."""
    rows = [
        [
            r["domain"],
            r["arm"],
            r["seed"],
            way,
            f"{r[way]['new']['loss']:.3f}",
            *(f"{r[way][name]['rise']:+.3f}" for name in PARTS_TOLD[1:]),
            r[way]["alpha"],
        ]
        for r in sorted(results, key=lambda r: (r["domain"], r["arm"], r["seed"]))
        for way in ("one number", "by part")
    ]
    return format_table(["shift", "arm", "seed", "alpha", *PARTS_TOLD, "alphas"], rows)


def table(results: Sequence[Mapping[str, Any]], label: str) -> str:
    """One row for each arm and shift at one choice of the dial: means (spread) of all seeds."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["domain"], result["arm"]), []).append(result)
    head = ["shift", "arm", "seeds", "dial", "new", "old", "own KL", "third", "third KL"]
    head += ["new|old", "old after new", "old|new", "new after old", "open new/old/own/third"]
    rows = []
    for (domain, arm), group in sorted(groups.items()):
        at = [result["dials"][label] for result in group]

        def mean(name: str, key: str, at: Sequence[Any] = at, digits: int = 3) -> str:
            values = [one[name][key] for one in at]
            spread = f" ({max(values) - min(values):.{digits}f})" if len(values) > 1 else ""
            return f"{statistics.mean(values):{'+' if key == 'rise' else ''}.{digits}f}{spread}"

        rows.append(
            [
                domain,
                arm,
                len(group),
                f"{statistics.mean(one['dial'] for one in at):.2f}",
                mean("new", "loss"),
                mean("old", "rise"),
                mean("own", "kl"),
                mean("third", "rise"),
                mean("third", "kl"),
                mean("new_then_old:new", "rise"),
                mean("new_then_old:old", "rise"),
                mean("old_then_new:old", "rise"),
                mean("old_then_new:new", "rise"),
                " ".join(
                    f"{statistics.mean(o[n]['open'] for o in at):.2f}"
                    for n in ("new", "old", "own", "third")
                ),
            ]
        )
    return format_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["run", "parts", "table"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--base", type=Path, help="default: stories260k-hf in --data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--domains", nargs="+", choices=sorted(DOMAINS), default=sorted(DOMAINS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output/gates"))
    options = parser.parse_args()
    options.base = options.base or options.data / "checkpoints/stories260k-hf"
    torch.set_flush_denormal(True)
    if options.what != "table":
        one = cell if options.what == "run" else parts_cell
        tokenizer = AutoTokenizer.from_pretrained(options.base)
        files = make_files(options.data, options.output / "texts", tokenizer)
        for seed in options.seeds:
            for arm in options.arms:
                for domain in options.domains:
                    one(options, files, arm, domain, seed)
    read = {
        kind: [json.loads(p.read_text()) for p in options.output.glob(f"*/*/*/{kind}.json")]
        for kind in ("result", "parts")
    }
    for label in read["result"][0]["dials"] if read["result"] else ():
        print(f"dial: {label}\n{table(read['result'], label)}\n")
    if read["parts"]:
        print(parts_table(read["parts"]))


if __name__ == "__main__":
    main()
