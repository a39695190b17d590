"""The recipe of the demo's base model: `python benchmarks/demo_base.py --output_dir FOLDER`.

A small Llama reads prose about Python (`controlllm.demo.corpus`, the old domain) and a pinch of
code, on one CPU thread in about twenty minutes. Seeds are fixed; the same Python and torch give the
same weights up to the order of floating-point sums on other processors.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from controlllm.common.storage.files import write_json
from controlllm.demo.corpus import Domain, Split, passages

__all__ = ["Recipe", "build_model", "pretrain", "train_tokenizer"]

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>"]


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule.

    Attributes:
        vocab_size: entries of the tokenizer, bytes and special tokens among them.
        hidden_size: width of the model.
        intermediate_size: width inside the MLP.
        num_layers: decoder blocks.
        num_heads: attention heads.
        length: tokens of one training row.
        batch_size: rows of one step.
        max_steps: optimizer steps.
        warmup_steps: steps of linear warm-up, before the cosine.
        learning_rate: the peak; the cosine ends at a fiftieth of it.
        weight_decay: of matrices.
        code_share: share of rows that are code: a real base has seen a little of everything.
        eval_steps: steps between measurements; the model is saved when it is the best so far.
        seed: of weights and data order.
    """

    vocab_size: int = 1536
    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 4
    num_heads: int = 4
    length: int = 256
    batch_size: int = 8
    max_steps: int = 2600
    warmup_steps: int = 100
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    code_share: float = 0.01
    eval_steps: int = 200
    seed: int = 0


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts `<s>` before every text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """The untrained model of a recipe."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.num_layers,
            num_attention_heads=recipe.num_heads,
            num_key_value_heads=recipe.num_heads,
            max_position_embeddings=2 * recipe.length,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def pretrain(recipe: Recipe, output_dir: Path) -> None:
    """Train tokenizer and model, and write the best state, the losses and the recipe."""
    torch.set_flush_denormal(True)
    english, code = passages("english", "train"), passages("code", "train")
    size = sum(map(len, english))
    tokenizer = train_tokenizer([*english, "\n".join(code)[:size]], recipe.vocab_size)
    tokenizer.save_pretrained(output_dir)
    held_out = {
        domain: _rows(_stream(tokenizer, domain, "held_out"), recipe.length)
        for domain in ("english", "code")
    }
    streams = {domain: _stream(tokenizer, domain, "train") for domain in ("english", "code")}
    print({name: len(stream) for name, stream in streams.items()}, "training tokens", flush=True)
    model = build_model(recipe)
    best, history, started = math.inf, [], time.time()
    for step, loss in _train(model, streams, recipe):
        if step % recipe.eval_steps and step != recipe.max_steps:
            continue
        losses = {domain: _evaluate(model, rows) for domain, rows in held_out.items()}
        history.append({"step": step, "train": loss, "seconds": time.time() - started} | losses)
        print({name: round(value, 4) for name, value in history[-1].items()}, flush=True)
        if losses["english"] < best:
            best = losses["english"]
            model.save_pretrained(output_dir)
        write_json(output_dir / "training.json", {"recipe": asdict(recipe), "history": history})


def _stream(tokenizer: PreTrainedTokenizerFast, domain: Domain, split: Split) -> Tensor:
    """All passages of a split as one line of tokens: <s> passage </s> <s> passage </s> ..."""
    encoded = tokenizer(passages(domain, split)).input_ids
    return torch.tensor([token for ids in encoded for token in [*ids, tokenizer.eos_token_id]])


def _rows(stream: Tensor, length: int) -> Tensor:
    """The stream as rows (N, length); what does not fill a row is left out."""
    return stream[: len(stream) // length * length].view(-1, length)


def _train(
    model: LlamaForCausalLM, streams: dict[str, Tensor], recipe: Recipe
) -> Iterator[tuple[int, float]]:
    """Train, giving the number of steps done and the last loss after each."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(recipe.seed)
    for step in range(recipe.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, recipe)
        batch = _draw(streams, recipe, generator)
        loss = _loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1, loss.item()


def _learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a fiftieth of the peak."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(recipe.max_steps - recipe.warmup_steps, 1)
    return recipe.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


def _draw(streams: dict[str, Tensor], recipe: Recipe, generator: torch.Generator) -> Tensor:
    """A batch of rows (B, T) from random places of the streams."""
    is_code = torch.rand(recipe.batch_size, generator=generator) < recipe.code_share
    places = torch.rand(recipe.batch_size, generator=generator)
    rows = []
    for code, place in zip(is_code.tolist(), places.tolist(), strict=True):
        stream = streams["code" if code else "english"]
        start = int(place * (len(stream) - recipe.length))
        rows.append(stream[start : start + recipe.length])
    return torch.stack(rows)


def _loss(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def _evaluate(model: LlamaForCausalLM, rows: Tensor) -> float:
    """Mean loss on the first 128 rows."""
    model.eval()
    loss = torch.stack([_loss(model, part) for part in rows[:128].split(16)]).mean().item()
    model.train()
    return loss


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the model")
    parser.add_argument("--max_steps", type=int, default=Recipe.max_steps, help="optimizer steps")
    arguments = parser.parse_args()
    pretrain(Recipe(max_steps=arguments.max_steps), arguments.output_dir)


if __name__ == "__main__":
    main()
