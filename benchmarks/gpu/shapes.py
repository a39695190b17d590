"""Models of useful sizes with random weights, a tokenizer and a text for them, all made in code."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["SIZES", "Size", "make_base", "make_tokenizer", "write_text"]

WORDS = 500


@dataclass(frozen=True)
class Size:
    """A Llama, and what a step of it is measured on."""

    width: int
    inner: int  # width of the MLP
    layers: int
    heads: int
    groups: int  # heads of keys and values
    vocabulary: int
    rows: int  # of a micro-batch
    length: int  # tokens of a row

    def config(self, layers: int | None = None) -> Any:
        """As transformers knows it, in bfloat16; embedding and head are one."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=layers or self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            max_position_embeddings=max(self.length, 1024),
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            dtype=torch.bfloat16,
        )


SIZES = {
    "dry": Size(64, 128, 4, 4, 2, 512, rows=2, length=32),
    "0.5B": Size(896, 4864, 24, 14, 2, 151_936, rows=8, length=2048),
    "1B": Size(2048, 8192, 16, 32, 8, 128_256, rows=8, length=2048),
    "1.5B": Size(1536, 8960, 28, 12, 2, 151_936, rows=8, length=2048),
}
"""The shapes of well-known models of about so many parameters."""


def make_base(config: Any, device: torch.device) -> Any:
    """A model with random weights, made where it will be: equal calls give equal weights."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=config.dtype)


def make_tokenizer() -> Any:
    """A tokenizer whose words are the numbers of its tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"{n}": n for n in range(3, WORDS)}
    backend = Tokenizer(models.WordLevel(names, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def write_text(path: Path, documents: int, tokens: int) -> Path:
    """Random documents of so many tokens each, as JSON lines."""
    words = random.Random(0)
    with path.open("w") as file:
        for _ in range(documents):
            text = " ".join(f"{words.randrange(3, WORDS)}" for _ in range(tokens))
            file.write(json.dumps({"text": text}) + "\n")
    return path
