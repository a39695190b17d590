"""The model card (README.md) beside every saved form."""

import re
from pathlib import Path
from typing import Any

from controlllm.expansion.hf_config import ControlLLMConfig
from controlllm.expansion.interpolators import INTERPOLATORS

__all__ = ["model_card"]

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_INTRO = {
    "full": "The whole expanded model: base and trained parts in one.",
    "sidecar": "The trained parts only; they are put beside the base model when loaded.",
    "adapter": "The trained parts only, as an adapter of PEFT.",
    "collapsed": "The trained parts folded into the base by interpolating weights: the original "
    "architecture, no "
    "extra cost. Folding is an approximation: report its score beside that of the expanded model.",
}

_LIBRARIES = {"collapsed": "transformers", "adapter": "peft"}

_SHOWN = (
    *("structure", "num_blocks", "layers", "interpolator", "alpha"),
    *("divergence", "divergence_weight", "expand_ends", "dial"),
)


def model_card(config: ControlLLMConfig, form: str) -> str:
    """The card's Markdown, with the Hub's metadata on top.

    Args:
        config: the expanded model's config (its expansion and its base).
        form: "full", "sidecar", "adapter" (of PEFT) or "collapsed".
    """
    base = _base_name(config) or "an unnamed base model"
    return "\n".join(
        [
            _metadata(config, form),
            f"# {base.rstrip('/').split('/')[-1]}, expanded by Control LLM ({form})",
            "",
            _INTRO[form],
            "",
            "## How it was made",
            "",
            _table(config),
            "",
            "## How to load it",
            "",
            "```python",
            _loading(config, form),
            "```",
            "",
            _dial_note(form, config),
            "Method: Control LLM (arXiv 2501.10979). Its use is bound by the licence of the base "
            "model and of the "
            "training data, which this card does not know: add them here.",
            "",
        ]
    )


def _base_name(config: ControlLLMConfig) -> str:
    """The base's name on the Hub; of a local folder only its own name, which gives nothing away."""
    name = (config.base.get("name_or_path") or "").rstrip("/")
    return name if _is_hub_name(name) else name.rpartition("/")[2]


def _is_hub_name(name: str) -> bool:
    if not name or name.startswith((".", "/")):
        return False
    return name.count("/") <= 1 and not Path(name).exists()


def _metadata(config: ControlLLMConfig, form: str) -> str:
    name = config.base.get("name_or_path") or ""
    lines = ["---", "library_name: " + _LIBRARIES.get(form, "controlllm")]
    if _is_hub_name(name):
        lines.append(f"base_model: {name}")
    return "\n".join([*lines, "tags:", "- control-llm", "- continual-learning", "---", ""])


def _table(config: ControlLLMConfig) -> str:
    expansion, base = config.expansion, config.base
    rows: dict[str, Any] = {
        "base model": _base_name(config) or "not recorded",
        "base revision": base.get("revision") or "not recorded",
        "base weights (fingerprint)": base.get("fingerprint") or "not recorded",
        "layers of the base": base.get("num_hidden_layers"),
    }
    rows |= {key: expansion[key] for key in _SHOWN if expansion.get(key) is not None}
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    )


def _loading(config: ControlLLMConfig, form: str) -> str:
    if form == "sidecar":
        base = _base_name(config) or "the-base-model"
        return (
            "from transformers import AutoModelForCausalLM\n"
            "from controlllm import load_sidecar\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
            'model = load_sidecar(base, "this-folder")'
        )
    if form == "adapter":
        base = _base_name(config) or "the-base-model"
        return (
            "import controlllm.integrations.peft  # makes the adapter's type known to PEFT\n"
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
            'model = PeftModel.from_pretrained(base, "this-folder")'
        )
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    if form == "full":
        imports = "import controlllm  # or pass trust_remote_code=True, twice\n" + imports
    return imports + (
        'model = AutoModelForCausalLM.from_pretrained("this-folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this-folder")'
    )


def _dial_note(form: str, config: ControlLLMConfig) -> str:
    if form == "collapsed":
        return ""
    off = "disable_adapter" if form == "adapter" else "disable_expansion"
    made = config.expansion_config()
    gated = made.structure != "stack" and not INTERPOLATORS.get(made.interpolator).constant
    full = "its token gates as they were trained" if gated else "the trained branch"
    return (
        "`model.set_alpha(alpha)` turns the dial between the base (0, bit for bit) and "
        f"{full} (1); "
        f"`with model.{off}():` is the base itself.\n"
    )
