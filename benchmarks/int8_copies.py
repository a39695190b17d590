"""What do copies in 8 bits save, and what do they change?

    python benchmarks/int8_copies.py RUN --text FILE

A trained model is loaded twice, with its copies in full and in 8 bits, and reads the same text.
Counted are the bytes of the copies' linear layers; measured are the loss of both, how far the
copies in 8 bits are from those in full (KL per token), and, for scale, how far those are from the
base.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from data_rows import machine


@torch.inference_mode()
def read(model: Any, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits of each row (1, T, V)."""
    return [model(input_ids=row).logits for row in rows]


def loss(logits: list[torch.Tensor], rows: list[torch.Tensor]) -> float:
    """Nats per token."""
    from controlllm.common.losses import cross_entropy_sum

    sums = [cross_entropy_sum(one, row) for one, row in zip(logits, rows, strict=True)]
    return float(sum(total for total, _ in sums) / sum(count for _, count in sums))


def away(reference: list[torch.Tensor], logits: list[torch.Tensor]) -> float:
    """KL(reference || model) per token in nats."""
    from controlllm.common.losses import next_token_kl

    pairs = zip(reference, logits, strict=True)
    return torch.cat([next_token_kl(a, b) for a, b in pairs], 1).mean().item()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from controlllm.checkpoint import LoadOptions, load_model
    from controlllm.expansion.surgery.int8_copies import quantize_copies

    torch.set_num_threads(1)
    load = LoadOptions(dtype=options.dtype, quantize_base=options.quantize_base, base=options.base)
    model, tokenizer = load_model(options.model, load)
    ids = tokenizer(options.text.read_text()[: 8 * options.tokens], return_tensors="pt").input_ids
    rows = list(ids[:, : options.tokens].split(options.length, 1))
    full = read(model, rows)
    with model.disable_expansion():  # type: ignore[operator]
        base = read(model, rows)
    before, after = quantize_copies(model)
    few = read(model, rows)
    return {
        "bytes in full": before,
        "bytes in 8 bits": after,
        "tokens": sum(row.shape[1] for row in rows),
        "loss of the base": loss(base, rows),
        "loss in full": loss(full, rows),
        "loss in 8 bits": loss(few, rows),
        "KL(base || full)": away(base, full),
        "KL(full || 8 bits)": away(full, few),
        "another first choice, share": torch.cat(
            [(a.argmax(-1) != b.argmax(-1)).float() for a, b in zip(full, few, strict=True)], 1
        )
        .mean()
        .item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="run, checkpoint or sidecar")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantize_base")
    parser.add_argument("--base")
    found = {"machine": machine(), **measure(parser.parse_args())}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
