"""The collapsed difference as a LoRA of the base: an approximate dial for tools that know LoRA.

PEFT, vLLM and llama-server add `scale * B A` to the base's matrices. Two things are lost on the way
and both are measured: collapsing interpolates weights instead of outputs, and the rank is low. What
LoRA cannot hold (norms, biases, expert tensors, expanded ends) is left out, counted and measured.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.export.alphas import one_alpha, told_alphas
from controlllm.checkpoint.models.export.forms import FORMS, RANK, Form, expanded
from controlllm.checkpoint.training.saved import BASE_RECORD, KINDS
from controlllm.common.errors import ConfigError, DataError, ModelError
from controlllm.common.facts import setting
from controlllm.common.losses import next_token_kl
from controlllm.common.storage.files import save_tensors, write_json, write_text
from controlllm.common.text.progress import progress, tick
from controlllm.expansion.files.card import model_card
from controlllm.expansion.files.lineage import folded_parent
from controlllm.expansion.files.sidecar import base_fingerprint
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.merge.low_rank import Change, applied, factor, weight_changes

__all__ = ["Lora"]

_PREFIX = "base_model.model."
"""What PEFT writes before the names of a base's modules."""
_MOST_TOKENS = 512
"""Of a text that the error is measured on: four sets of logits are held at once."""
ERRORS = "lora_errors.json"


@FORMS.register("lora")
@dataclass
class Lora(Form):
    """Matrices of low rank, for the base in PEFT, vLLM and llama.cpp; only for "concat"."""

    trained_only: ClassVar[bool] = True

    rank: int = setting(RANK, at_least=1, at_most=2**16)
    """Rank of each matrix; a full one loses nothing but what LoRA cannot hold."""
    texts: str | None = None
    """A text file; the KL to the trained model is measured on its first 512 tokens."""

    def write(
        self,
        model: PreTrainedModel,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase | None,
        inplace: bool,
    ) -> None:
        """Write what PEFT reads, its card, and the error of every matrix."""
        whole = expanded(model, "lora")
        _require_own_base(whole)
        ids = None if self.texts is None else _tokens(self.texts, tokenizer)
        fitted = _fit(whole, self.rank, keep=ids is not None)
        report = fitted.report() | {"alpha": told_alphas(whole), "rank": fitted.rank}
        if ids is not None:
            report["kl"] = _divergences(whole, ids, fitted) | {"tokens": ids.shape[1]}
        self.told += _told(report, one_alpha(whole))
        kind = KINDS["adapters"]
        save_tensors(folder / kind.weights, fitted.tensors, {"format": "pt"})
        write_json(folder / kind.config, _peft_config(whole, fitted))
        base_fingerprint(whole)
        write_json(folder / BASE_RECORD, whole.config.base)
        write_json(folder / ERRORS, report)
        card = model_card(whole.config, "lora", {"rank": fitted.rank, "measured": self.told})
        write_text(folder / "README.md", card)


def _require_own_base(model: ControlLLMForCausalLM) -> None:
    """Other tools load the base by its name, and cannot fold a stage into it (ModelError)."""
    folded = folded_parent(model.config.parents)
    if folded is not None:
        raise ModelError(
            f"form='lora' needs a base that other tools load by its name, and this one has the "
            f"stage {model.config.parents[folded]['name']!r} folded in. Export the form "
            "'collapsed', or 'full'."
        )


@dataclass
class _Fitted:
    """The matrices, and what they miss of the change. `deltas` are kept only to measure with."""

    rank: int = 0
    transposed: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    missed2: float = 0.0
    held2: float = 0.0
    left_out: dict[str, float] = field(default_factory=dict)
    collapsed: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    low_rank: dict[nn.Parameter, Tensor] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """Relative errors in the Frobenius norm: of each matrix, of all, of the whole change."""
        left2 = sum(norm**2 for norm in self.left_out.values())
        return {
            "matrices": len(self.errors),
            "error": math.sqrt(self.missed2 / self.held2),
            "error_with_left_out": math.sqrt((self.missed2 + left2) / (self.held2 + left2)),
            "error_at_full_rank": math.sqrt(left2 / (self.held2 + left2)),
            "error_by_matrix": self.errors,
            "left_out_norms": self.left_out,
        }


def _fit(model: ControlLLMForCausalLM, rank: int, keep: bool) -> _Fitted:
    """Factor every linear layer's change; `keep` both, the change and its approximation."""
    matrices = [p for b in model.blocks.values() for p in b.pretrained.parameters() if p.dim() == 2]
    fitted = _Fitted(rank=min(rank, max(min(matrix.shape) for matrix in matrices)))
    with progress("factoring", "matrices", len(matrices)):
        for change in weight_changes(model):
            if keep:
                fitted.collapsed[change.parameter] = change.delta
            norm = change.delta.norm().item()
            if change.linear:
                missed = _add(fitted, change, keep)
                fitted.errors[change.name] = missed / norm if norm else 0.0
                fitted.missed2 += missed**2
                fitted.held2 += norm**2
                tick()
            elif norm:
                fitted.left_out[change.name] = norm
    if not fitted.held2:
        raise ModelError(
            "No matrix of the base would change (alpha is 0, or nothing was trained), so there is "
            "no LoRA to write."
        )
    return fitted


def _add(fitted: _Fitted, change: Change, keep: bool) -> float:
    """Factor one change; the norm of what is missed, by the numbers that are written."""
    wanted = change.delta.mT if change.transposed else change.delta
    dtype = change.parameter.dtype
    a, b = (side.to(dtype).cpu().contiguous() for side in factor(wanted, fitted.rank))
    product = (b.float() @ a.float()).to(wanted.device)
    module = change.name.removesuffix(".weight")
    fitted.modules.append(module)
    fitted.transposed |= change.transposed
    fitted.tensors[f"{_PREFIX}{module}.lora_A.weight"] = a
    fitted.tensors[f"{_PREFIX}{module}.lora_B.weight"] = b
    if keep:
        fitted.low_rank[change.parameter] = product.mT if change.transposed else product
    return (wanted - product).norm().item()


def _peft_config(model: ControlLLMForCausalLM, fitted: _Fitted) -> dict[str, Any]:
    """`adapter_config.json`: scale 1 is what was measured, since `lora_alpha / r` is 1."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.config.base.get("name_or_path") or None,
        "revision": model.config.base.get("revision"),
        "r": fitted.rank,
        "lora_alpha": fitted.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(fitted.modules),
        "fan_in_fan_out": fitted.transposed,
        "inference_mode": True,
    }


def _tokens(path: str, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
    """The first tokens of a text file (1, T)."""
    if tokenizer is None:
        raise ConfigError("texts can be read with a tokenizer only; give the model's.")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST_TOKENS * 16)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"texts: {path} cannot be read as UTF-8 text: {error}.") from error
    ids: Tensor = tokenizer(text, return_tensors="pt")["input_ids"][:, :_MOST_TOKENS]
    if not text.strip() or ids.shape[1] < 2:
        raise DataError(f"texts: {path} holds no text to measure on.")
    return ids


@torch.no_grad()
def _divergences(model: ControlLLMForCausalLM, ids: Tensor, fitted: _Fitted) -> dict[str, float]:
    """Mean KL(trained || .) in nats per token: of the base, the collapsed model and the LoRA."""
    ids = ids.to(model.device)
    trained = model(input_ids=ids).logits
    deltas: dict[str, Mapping[nn.Parameter, Tensor]] = {
        "base": {},
        "collapsed": fitted.collapsed,
        "lora": fitted.low_rank,
    }
    found = {}
    for name, change in deltas.items():
        with applied(model, change) as other:
            found[name] = next_token_kl(trained, other(input_ids=ids).logits).mean().item()
    return found


def _told(report: Mapping[str, Any], alpha: float | None) -> list[str]:
    """What the user should know."""
    errors, left_out = report["error_by_matrix"], report["left_out_norms"]
    worst = max(errors, key=errors.__getitem__)
    scale = f"; for alpha a use the scale a / {alpha:.4g}" if alpha else ""
    lines = [
        f"rank {report['rank']}; scale 1 is the collapsed model at alpha {report['alpha']}{scale}",
        f"relative error of {len(errors)} matrices {report['error']:.3g}, worst "
        f"{errors[worst]:.3g} ({worst})",
    ]
    if left_out:
        largest = max(left_out, key=left_out.__getitem__)
        lines += [
            f"left out: {len(left_out)} tensors that LoRA cannot hold (norms, biases, experts, "
            f"expanded ends), with norm {math.hypot(*left_out.values()):.3g}, the largest "
            f"{left_out[largest]:.3g} ({largest})",
            f"error with what is left out {report['error_with_left_out']:.3g}, and at no rank less "
            f"than {report['error_at_full_rank']:.3g}; the forms collapsed, sidecar and full keep "
            "all of it",
        ]
    if "kl" in report:
        kl = report["kl"]
        named = ", ".join(f"{name} {kl[name]:.4g}" for name in ("base", "collapsed", "lora"))
        lines.append(f"KL from the trained model in nats per token, {kl['tokens']} tokens: {named}")
    return lines
