"""The model card (README.md) beside every saved form."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from controlllm.common.text.readable import readable
from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.expansion.method.registries import INTERPOLATORS

__all__ = ["model_card", "with_dial"]

_HUB_NAME = re.compile(r"\w[\w.-]{,95}(/\w[\w.-]{,95})?", re.ASCII)
_PLAIN = re.compile(r"(?!.*www\.)[\w.+, \[\]/-]+", re.ASCII)
"""Text that is no Markdown, no HTML and no link."""
_INTRO = {
    "full": "The whole expanded model: base and trained parts in one.",
    "sidecars": "A base and several named sidecars of it in one.",
    "sidecar": "The trained parts only; they are put beside the base model when loaded.",
    "adapter": "The trained parts only, as an adapter of PEFT.",
    "collapsed": "The trained parts folded into the base by interpolating weights: the original "
    "architecture, no extra cost. Folding is an approximation: report its score beside that of the "
    "expanded model.",
    "gguf": "One file for llama.cpp and what is built on it, and a Modelfile for Ollama.",
    "lora": "The collapsed difference from the base as a LoRA: an approximation of an "
    "approximation, with its error in the table. The scale of the LoRA is the dial.",
    "unrolled": "The trained blocks as layers of their own: the base's architecture, deeper, and "
    "exactly the function of the expanded model.",
}

_LIBRARIES = {
    "collapsed": "transformers",
    "unrolled": "transformers",
    "adapter": "peft",
    "lora": "peft",
}
_WITHOUT_DIAL = ("collapsed", "gguf", "lora", "unrolled")

_SHOWN = (
    *("structure", "num_blocks", "layers", "interpolator", "alpha"),
    *("divergence", "divergence_weight", "expand_ends"),
)


def model_card(config: ControlLLMConfig, form: str, more: Mapping[str, Any] | None = None) -> str:
    """The card's Markdown, with the Hub's metadata on top.

    Args:
        config: the expanded model's.
        form: the form that the card lies beside.
        more: rows of the table that only this form has; of a list each item is a row.
    """
    base = _base_name(config) or "an unnamed base model"
    metadata: dict[str, Any] = {"library_name": _LIBRARIES.get(form, "controlllm")}
    if _is_hub_name(name := str(config.base.get("name_or_path") or "")):
        metadata["base_model"] = name
    metadata["tags"] = ["control-llm", "continual-learning"]
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n",
            f"# {_told(base.split('/')[-1])}, expanded by Control LLM ({form})",
            "",
            _INTRO[form],
            "",
            "## How it was made",
            "",
            _table(config, more or {}),
            "",
            "## How to load it",
            "",
            f"```{'sh' if form == 'gguf' else 'python'}",
            _loading(config, form),
            "```",
            "",
            _dial_note(form, config),
            "Method: Control LLM (arXiv 2501.10979). Its use is bound by the licence of the base "
            "model and of the training data, which this card does not know: add them here.",
            "",
        ]
    )


def with_dial(card: str, dial: Any) -> str:
    """A card whose table says where the dial stands now; all else is as its writers left it."""
    return re.sub(r"^\| dial \| .* \|$", lambda row: _dial_row(dial), card, flags=re.MULTILINE)


def _base_name(config: ControlLLMConfig) -> str:
    """The base's name on the Hub; of a local folder only its own name, which gives nothing away."""
    name = str(config.base.get("name_or_path") or "").rstrip("/")
    return name if _is_hub_name(name) else name.rpartition("/")[2]


def _is_hub_name(name: str) -> bool:
    return _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def _told(value: Any) -> str:
    """What a folder says of itself, as text: a stranger's is code, not Markdown or HTML."""
    text = readable(" ".join(str(value).split()))[:200]
    if _PLAIN.fullmatch(text):
        return text
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


def _table(config: ControlLLMConfig, more: Mapping[str, Any]) -> str:
    expansion, base = config.expansion, config.base
    rows: dict[str, Any] = {
        "base model": _base_name(config) or "not recorded",
        "base revision": base.get("revision") or "not recorded",
        "base weights (fingerprint)": base.get("fingerprint") or "not recorded",
        "layers of the base": base.get("num_hidden_layers"),
    }
    if config.parents:
        rows["learned after"] = ", ".join(
            f"{one['name']} by {one['way']}" for one in config.parents
        )
    rows |= {key: expansion[key] for key in _SHOWN if expansion.get(key) is not None}
    added = [
        (k, v) for k, item in more.items() for v in (item if isinstance(item, list) else [item])
    ]
    lines, below = (
        [f"| {key} | {_told(value)} |" for key, value in some] for some in (rows.items(), added)
    )
    dial = [_dial_row(expansion.get("dial"))] if expansion else []
    return "\n".join(["| | |", "|---|---|", *lines, *dial, *below])


def _dial_row(dial: Any) -> str:
    return f"| dial | {'as trained' if dial is None else _told(dial)} |"


_ONTO_BASE = {
    "sidecar": (
        "from transformers import AutoModelForCausalLM\nfrom controlllm import load_sidecar\n",
        "load_sidecar",
    ),
    "adapter": (
        "import controlllm.integrations.peft  # makes the adapter's type known to PEFT\n"
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n",
        "PeftModel.from_pretrained",
    ),
    "lora": (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n",
        "PeftModel.from_pretrained",
    ),
}
"""Imports and loader of the forms that need their base."""


def _loading(config: ControlLLMConfig, form: str) -> str:
    if form in _ONTO_BASE:
        imports, load = _ONTO_BASE[form]
        base = json.dumps(_base_name(config) or "the-base-model")
        return (
            f"{imports}\nbase = AutoModelForCausalLM.from_pretrained({base})\n"
            f'model = {load}(base, "this-folder")'
        )
    if form == "gguf":
        return "llama-server -m this-folder/model.gguf\nollama create NAME -f this-folder/Modelfile"
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    if form in ("full", "sidecars"):
        imports = "import controlllm  # or pass trust_remote_code=True, twice\n" + imports
    return imports + (
        'model = AutoModelForCausalLM.from_pretrained("this-folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this-folder")'
    )


def _dial_note(form: str, config: ControlLLMConfig) -> str:
    if form in _WITHOUT_DIAL:
        return ""
    if form == "sidecars":
        return (
            "`model.set_alpha({name: alpha})` turns the dial of a sidecar from the base (0, bit "
            "for bit) to 1; what is not named is off. At first all of several are.\n"
        )
    off = "disable_adapter" if form == "adapter" else "disable_expansion"
    made = config.expansion_config()
    gated = made.structure != "stack" and not INTERPOLATORS.get(made.interpolator).constant
    full = "its token gates as they were trained" if gated else "the trained branch"
    return (
        "`model.set_alpha(alpha)` turns the dial between the base (0, bit for bit) and "
        f"{full} (1); `with model.{off}():` is the base itself.\n"
    )
