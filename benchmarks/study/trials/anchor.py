"""A pull to the base on the new text itself: weight * KL(base || model), beside all other terms.

Method `kl` has that on the targets, with every weight trained; here it is on tokens of choice and
with any method that keeps its base. The mean is over the chosen positions of a micro-batch, which
is a step's where it has one micro-batch of one process, as here.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.study import trial
from benchmarks.study.plan import Cell
from torch import Tensor

from controlllm.common.losses import masked_sum, next_token_kl, target_mask
from controlllm.common.registry import check_choice
from controlllm.common.storage.files import write_text
from controlllm.data import REHEARSAL
from controlllm.train import LOSS_TYPES
from controlllm.train.step.losses import Counts, StepLoss, StepReport

__all__ = ["AnchoredLoss", "Trial", "chosen"]

PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{{ eos_token }}"
)
"""A template that writes requests and answers as the study's texts have them."""
TOKENS = ("targets", "prompts", "all")


class Trial(trial.Trial):
    """The anchor of an arm.

    Args:
        weight: of the KL; 0 = none, to compare with.
        tokens: positions that predict a target, or another token of the same document (`prompts`,
            of which there are only where `answers` is true), or both.
        by: what each position counts; `entropy`: how unsure the base is (that of its twenty
            likeliest tokens, 1 at most), `sureness`: 1 less that.
        answers: the first line of each row is a prompt, and only the rest are targets.
    """

    def __init__(
        self, weight: float, tokens: str = "targets", by: str | None = None, answers: bool = False
    ) -> None:
        check_choice("tokens", tokens, TOKENS)
        check_choice("by", by or "entropy", ("entropy", "sureness"))
        self.weight, self.tokens, self.by, self.answers = weight, tokens, by, answers

    def values(self, cell: Cell, files: Mapping[str, str]) -> dict[str, Any]:
        """Rows with prompts, where only answers are learned."""
        if not self.answers:
            return {}
        rows = (row.partition("\n") for row in Path(files["train"]).read_text().split("\n\n"))
        lines = [
            json.dumps({"prompt": first + line, "completion": rest})
            for first, line, rest in rows
            if rest
        ]
        path = Path(files["train"]).with_suffix(".answers.jsonl")
        write_text(path, "\n".join(lines) + "\n")
        return {"data": {"train": [{"path": str(path)}], "chat_template": PLAIN}}

    def training(self) -> AbstractContextManager[None]:
        """Inside, the loss of a step is anchored."""
        return trial.step_loss(AnchoredLoss, pull=self.weight, tokens=self.tokens, by=self.by)


class AnchoredLoss(StepLoss):
    """A step's loss with the anchor, which is reported as `anchor`."""

    pull: float
    tokens: str
    by: str | None
    output_BTV: Tensor

    def _forward(self, inputs: dict[str, Any]) -> Tensor:
        self.output_BTV = super()._forward(inputs)
        return self.output_BTV

    def micro_batch(
        self, batch: Mapping[str, Any], counts: Counts, report: StepReport | None = None
    ) -> Tensor:
        """The micro-batch's share, and the anchor on it."""
        loss = super().micro_batch(batch, counts, report)
        if not self.pull:
            return loss
        mask_BT = chosen(batch, self.tokens)
        base_BTV = self._base_logits(batch)
        kl_BT = next_token_kl(base_BTV, self.output_BTV)
        if self.by is not None:
            unsure_BT = unsureness(base_BTV)
            kl_BT = kl_BT * (unsure_BT if self.by == "entropy" else 1 - unsure_BT)
        total, count = masked_sum(kl_BT, mask_BT)
        anchor = self.pull * total / count.clamp_min(1)
        if report is not None:
            report.losses["anchor"] = report.losses.get("anchor", 0.0) + anchor.detach()
        return loss + anchor


def chosen(batch: Mapping[str, Any], tokens: str) -> Tensor:
    """Positions of new text that predict the chosen tokens (B, T bool)."""
    origin_BT = batch["origin"]
    new_BT = (origin_BT >= 0) & (origin_BT != REHEARSAL)
    labels_BT = batch["labels"]
    targets_BT = target_mask(labels_BT) & new_BT
    following_BT = new_BT & new_BT.roll(-1, dims=1)
    following_BT[:, -1] = False
    if "position_ids" in batch:  # The first token of a document follows on none.
        following_BT &= batch["position_ids"].roll(-1, dims=1) != 0
    return {
        "targets": targets_BT,
        "prompts": following_BT & ~targets_BT,
        "all": following_BT | targets_BT,
    }[tokens]


def unsureness(logits_BTV: Tensor) -> Tensor:
    """The weights of the loss `eaft` (B, T)."""
    weigh: Any = LOSS_TYPES.get("eaft")
    return weigh(logits_BTV.flatten(0, 1).float(), None).view(logits_BTV.shape[:2])
