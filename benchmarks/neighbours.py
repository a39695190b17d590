"""Is an expanded model at home in other tools? Each is run for real, where it is installed.

    python benchmarks/neighbours.py axolotl --data ../shared/data --output benchmarks-output

Run it by the Python that the tool is installed in. A real base (stories260k) learns GSM8K by the
tool's own command: straight through, again from the middle, and without divergence. Looked at are
held-out losses, what the checkpoints hold, whether the resumed run ends in the same bits, whether
the divergence pulls, whether the base is still itself, and whether the tool infers with it.
"""

import argparse
import gzip
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    CUDA_VISIBLE_DEVICES="",
    AXOLOTL_DO_NOT_TRACK="1",
)

import torch
import yaml
from torch import Tensor

STEPS, MIDDLE = 12, 6
TRAINING = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": STEPS,
    "save_steps": MIDDLE,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
}
"""What ms-swift and LLaMA-Factory are told by the same names."""
SETTINGS = {"num_blocks": 2, "interpolator": "lerp", "divergence": "mse"}
PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "datasets")
TOOLS = {
    "axolotl": "axolotl",
    "swift": "ms-swift",
    "llama_factory": "llamafactory",
    "mergekit": "mergekit",
}


class Seen:
    """What is looked at of one tool's runs, against the base and held-out texts."""

    def __init__(self, options: argparse.Namespace) -> None:
        from transformers import AutoTokenizer

        self.base = options.data / "checkpoints" / "stories260k-hf"
        self.folder = (options.output / f"neighbours-{options.tool}").absolute()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.tokenizer = AutoTokenizer.from_pretrained(self.base)
        gsm = options.data / "sft" / "gsm8k"
        with gzip.open(gsm / "train.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line in file][:96]
        self.rows = self.folder / "gsm8k.jsonl"
        texts = [{"instruction": r["question"], "input": "", "output": r["answer"]} for r in rows]
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in texts))
        held_out = (gsm / "test.jsonl").read_text().splitlines()[:16]
        questions = [json.loads(line) for line in held_out]
        stories = (options.data / "text/tinystories_excerpt/tinystories.txt").read_text()[-6000:]
        self.sets = {
            "maths": self.encode([f"{q['question']}\n{q['answer']}" for q in questions]),
            "stories": self.encode([stories[i : i + 1000] for i in range(0, 6000, 1000)]),
        }

    def encode(self, texts: list[str]) -> list[Tensor]:
        return [torch.tensor([self.tokenizer(text)["input_ids"][:512]]) for text in texts]

    def load_base(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)

    @torch.no_grad()
    def losses(self, model: Any) -> dict[str, float]:
        """Nats per token of each set."""
        model.eval()
        found = {}
        for name, texts in self.sets.items():
            sums = [model(ids, labels=ids).loss * (ids.shape[1] - 1) for ids in texts]
            found[name] = float(sum(sums) / sum(ids.shape[1] - 1 for ids in texts))
        return found

    def divergence(self, model: Any) -> float:
        """Mean over the blocks, on the held-out questions, as in training."""
        model.train()
        values = []
        for ids in self.sets["maths"]:
            model(ids, labels=ids)
            values += model.divergence.values()
        model.eval()
        return sum(values) / len(values)

    @torch.no_grad()
    def is_base(self, model: Any) -> bool:
        """Whether the model with its expansion off gives the base's logits bit for bit."""
        base = self.load_base().eval()
        model.eval()
        with model.disable_expansion():
            return all(torch.equal(model(i).logits, base(i).logits) for i in self.sets["maths"])

    @torch.no_grad()
    def same_logits(self, a: Any, b: Any) -> bool:
        a.eval(), b.eval()
        return all(torch.equal(a(ids).logits, b(ids).logits) for ids in self.sets["maths"])

    def of_sidecars(self, straight: Path, resumed: Path, free: Path) -> dict[str, Any]:
        """What three runs have in common, whatever trained them."""
        from safetensors.torch import load_file

        from controlllm import load_sidecar

        one, two = (load_file(f / "sidecar.safetensors") for f in (straight, resumed))
        trained = load_sidecar(self.load_base(), straight)
        return {
            "losses_before": self.losses(self.load_base()),
            "losses_after": self.losses(trained),
            "losses_after_without_divergence": self.losses(load_sidecar(self.load_base(), free)),
            "divergence": self.divergence(trained),
            "divergence_without": self.divergence(load_sidecar(self.load_base(), free)),
            "base_untouched": self.is_base(trained),
            "resumed_bit_for_bit": one.keys() == two.keys()
            and all(torch.equal(one[name], two[name]) for name in one),
            "trained_tensors": len(one),
        }

    def run(self, name: str, *words: str) -> None:
        """Run a command; its words, and what it said, are kept."""
        log = self.folder / f"{name}.log"
        with log.open("w") as file:
            done = subprocess.run(words, cwd=self.folder, stdout=file, stderr=subprocess.STDOUT)
        if done.returncode:
            sys.exit(f"{' '.join(words)} failed:\n{log.read_text()[-3000:]}")

    def write(self, name: str, config: dict[str, Any]) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return str(path)


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def axolotl(seen: Seen) -> dict[str, Any]:
    def train(name: str, settings: dict[str, Any], **changes: Any) -> tuple[Path, str]:
        config = {
            "base_model": str(seen.base),
            "plugins": ["controlllm.integrations.axolotl.ControlLLMPlugin"],
            "adapter": "controlllm",
            "controlllm": settings,
            "datasets": [{"path": str(seen.rows), "type": "alpaca", "ds_type": "json"}],
            "dataset_prepared_path": str(seen.folder / "prepared"),
            "output_dir": str(seen.folder / name),
            "sequence_len": 512,
            "micro_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": STEPS,
            "save_steps": MIDDLE,
            "learning_rate": 2e-3,
            "lr_scheduler": "constant",
            "optimizer": "adamw_torch",
            "logging_steps": 1,
            "bf16": False,
            "tf32": False,
            "attn_implementation": "sdpa",
            "special_tokens": {"pad_token": "</s>"},
            "dataset_num_proc": 1,
            "seed": 1,
        }
        path = seen.write(name, config | changes)
        seen.run(name, sys.executable, "-m", "axolotl.cli.train", path)
        return seen.folder / name, path

    straight, path = train("straight", SETTINGS)
    middle = straight / f"checkpoint-{MIDDLE}"
    resumed, _ = train("resumed", SETTINGS, resume_from_checkpoint=str(middle))
    free, _ = train("free", SETTINGS | {"divergence_weight": 0.0})
    begun, _ = train("begun", SETTINGS, lora_model_dir=str(straight), max_steps=1, save_steps=1)
    logs = [json.loads((f / "trainer_state.json").read_text())["log_history"][0]["loss"]
            for f in (straight / f"checkpoint-{MIDDLE}", begun / "checkpoint-1")]  # fmt: skip

    from axolotl.cli.config import load_cfg
    from axolotl.cli.utils import load_model_and_tokenizer

    from controlllm import load_sidecar

    cfg = load_cfg(path, inference=True, lora_model_dir=str(straight))
    model = load_model_and_tokenizer(cfg=cfg, inference=True)[0]
    ours = load_sidecar(seen.load_base(), straight / "sidecar")
    found = seen.of_sidecars(*(f / "sidecar" for f in (straight, resumed, free)))
    return found | {
        "checkpoint_holds": names_of(middle),
        "output_holds": names_of(straight),
        "first_loss_of_new_run": logs[0],
        "first_loss_from_sidecar": logs[1],
        "infers_as_our_loader": seen.same_logits(model, ours),
    }


def swift(seen: Seen) -> dict[str, Any]:
    from controlllm.integrations import swift as plugin

    file = Path(plugin.__file__).with_name("_plugin.py")

    def train(name: str, settings: dict[str, Any], **changes: Any) -> Path:
        config = {
            "model": str(seen.base),
            "model_type": "llama",
            "template": "default",
            "external_plugins": [str(file)],
            "tuner_type": "controlllm",
            "callbacks": ["controlllm"],
            "model_kwargs": {"controlllm": settings},
            "dataset": [str(seen.rows)],
            "split_dataset_ratio": 0,
            "torch_dtype": "float32",
            "max_length": 512,
            **TRAINING,
            "warmup_ratio": 0,
            "logging_steps": 1,
            "output_dir": str(seen.folder / name),
            "add_version": False,
            "dataset_num_proc": 1,
            "dataloader_num_workers": 0,
            "report_to": ["none"],
            "seed": 1,
            "use_hf": True,
        }
        path = seen.write(name, config | changes)
        seen.run(name, sys.executable, "-m", "swift.cli.main", "sft", path)
        return seen.folder / name / f"checkpoint-{changes.get('max_steps', STEPS)}"

    straight = train("straight", SETTINGS)
    middle = straight.with_name(f"checkpoint-{MIDDLE}")
    resumed = train("resumed", SETTINGS, resume_from_checkpoint=str(middle))
    free = train("free", SETTINGS | {"divergence_weight": 0.0})
    begun = train("begun", SETTINGS, adapters=[str(straight)], max_steps=1)
    logs = [json.loads((f / "trainer_state.json").read_text())["log_history"][0]["loss"]
            for f in (straight, begun)]  # fmt: skip

    from swift.arguments import InferArguments
    from swift.pipelines.utils import prepare_model_template

    from controlllm import load_sidecar

    model, _ = prepare_model_template(InferArguments(adapters=[str(straight)], use_hf=True))
    ours = load_sidecar(seen.load_base(), straight / "sidecar")
    found = seen.of_sidecars(*(f / "sidecar" for f in (straight, resumed, free)))
    return found | {
        "checkpoint_holds": names_of(middle),
        "first_loss_of_new_run": logs[0],
        "first_loss_from_sidecar": logs[1],
        "infers_as_our_loader": seen.same_logits(model, ours),
    }


def llama_factory(seen: Seen) -> dict[str, Any]:
    from controlllm import expand, load_sidecar
    from controlllm.checkpoint import export, load_model

    info = {"gsm8k": {"file_name": seen.rows.name}}
    (seen.folder / "dataset_info.json").write_text(json.dumps(info))

    def train(name: str, settings: dict[str, Any], **changes: Any) -> Path:
        expanded = seen.folder / f"{name}-expanded"
        export(expand(seen.load_base(), **settings), expanded, "full", seen.tokenizer)
        config = {
            "model_name_or_path": str(expanded),
            "trust_remote_code": True,
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "dataset_dir": str(seen.folder),
            "dataset": "gsm8k",
            "template": "empty",
            "cutoff_len": 512,
            "preprocessing_num_workers": 1,
            "output_dir": str(seen.folder / name),
            **TRAINING,
            "logging_steps": 1,
            "report_to": "none",
            "seed": 1,
        }
        seen.run(
            name,
            sys.executable,
            "-m",
            "llamafactory.cli",
            "train",
            seen.write(name, config | changes),
        )
        trained, tokenizer = load_model(seen.folder / name)
        export(trained, seen.folder / f"{name}-sidecar", "sidecar", tokenizer)
        return seen.folder / name

    straight = train("straight", SETTINGS)
    middle = straight / f"checkpoint-{MIDDLE}"
    resumed = train("resumed", SETTINGS, resume_from_checkpoint=str(middle))
    free = train("free", SETTINGS | {"divergence_weight": 0.0})
    ours = load_sidecar(seen.load_base(), f"{straight}-sidecar")
    found = seen.of_sidecars(*(Path(f"{f}-sidecar") for f in (straight, resumed, free)))
    log = (seen.folder / "straight.log").read_text()
    return found | {
        "checkpoint_holds": names_of(middle),
        "trainable": next(
            line.split(">> ")[1] for line in log.splitlines() if "trainable params:" in line
        ),
        "sidecar_is_the_folder": seen.same_logits(load_model(straight)[0], ours),
    }


def mergekit(seen: Seen) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    from controlllm import collapse, expand
    from controlllm.checkpoint import export
    from controlllm.integrations.mergekit import write_for_mergekit

    torch.manual_seed(0)
    model = expand(seen.load_base(), **SETTINGS).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    rows = [json.loads(line) for line in seen.rows.read_text().splitlines()]
    for row in rows:
        (ids,) = seen.encode([f"{row['instruction']}\n{row['output']}"])
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    recipe = write_for_mergekit(model.eval(), seen.folder / "merge", tokenizer=seen.tokenizer)
    collapsed = export(model, seen.folder / "collapsed", "collapsed", seen.tokenizer)
    command = str(Path(sys.executable).with_name("mergekit-yaml"))
    pair = {"base_model": str(seen.base), "dtype": "float32"}
    recipes = {
        "linear": yaml.safe_load(recipe.read_text()),
        "slerp": pair
        | {
            "merge_method": "slerp",
            "models": [{"model": str(seen.base)}, {"model": str(collapsed)}],
            "parameters": {"t": 0.5},
        },
        "ties": pair
        | {
            "merge_method": "ties",
            "models": [{"model": str(collapsed), "parameters": {"weight": 1.0, "density": 0.5}}],
            "parameters": {"normalize": True},
        },
    }
    losses = {
        "base": seen.losses(seen.load_base()),
        "expanded": seen.losses(model),
        "collapsed by controlllm": seen.losses(collapse(model)),
    }
    off = {}
    for name, config in recipes.items():
        seen.run(name, command, seen.write(name, config), str(seen.folder / name))
        merged = AutoModelForCausalLM.from_pretrained(seen.folder / name)
        losses[f"mergekit {name}"] = seen.losses(merged)
        expected = BY_HAND[name](seen.load_base().state_dict(), collapse(model).state_dict())
        tensors = merged.state_dict()
        off[name] = max(float((tensors[n].double() - t).abs().max()) for n, t in expected.items())
    return {"losses": losses, "largest_difference_from_by_hand": off}


Tensors = dict[str, Tensor]


def linear_by_hand(base: Tensors, collapsed: Tensors) -> Tensors:
    """The recipe of base and donor is our own collapsed model."""
    return {name: tensor.double() for name, tensor in collapsed.items()}


def slerp_by_hand(base: Tensors, collapsed: Tensors) -> Tensors:
    """Half the way along the arc; straight where the angle is small, as mergekit does."""

    def half_way(p: Tensor, q: Tensor) -> Tensor:
        dot = (p * q).sum() / p.norm() / q.norm()
        if dot > 0.9995:
            return (p + q) / 2
        angle = torch.acos(dot)
        return torch.sin(angle / 2) * (p + q) / torch.sin(angle)

    return {n: half_way(base[n].double(), collapsed[n].double()) for n in base}


def ties_by_hand(base: Tensors, collapsed: Tensors) -> Tensors:
    """One task vector: its half of largest size stays, and there is nobody to disagree."""
    merged = {}
    for name, tensor in base.items():
        delta = (collapsed[name] - tensor).flatten()
        keep = torch.zeros_like(delta)
        kept = delta.abs().topk(int(0.5 * delta.numel())).indices
        keep[kept] = delta[kept]
        merged[name] = tensor.double() + keep.reshape(tensor.shape)
    return merged


BY_HAND: dict[str, Callable[[Tensors, Tensors], Tensors]] = {
    "linear": linear_by_hand,
    "slerp": slerp_by_hand,
    "ties": ties_by_hand,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    options = parser.parse_args()
    options.data = options.data.resolve()
    torch.set_num_threads(1)
    versions = {name: importlib.metadata.version(name) for name in (TOOLS[options.tool], *PACKAGES)}
    runs = {
        "axolotl": axolotl,
        "swift": swift,
        "llama_factory": llama_factory,
        "mergekit": mergekit,
    }
    record = {"versions": versions} | runs[options.tool](Seen(options))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    record["commit"] = commit.stdout.strip()
    target = options.output / f"neighbours-{options.tool}.json"
    target.write_text(json.dumps(record, indent=1))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
