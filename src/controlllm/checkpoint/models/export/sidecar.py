"""The trained tensors with their config and card, apart from their base."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.export.forms import FORMS, Form, expanded
from controlllm.expansion.files.packed import check_bits, packed_bits
from controlllm.expansion.files.sidecar import save_sidecar
from controlllm.expansion.hub.branches import BranchedForCausalLM

__all__ = ["Sidecar"]

log = logging.getLogger(__name__)


@FORMS.register("sidecar")
@dataclass
class Sidecar(Form):
    """The trained tensors only; they are put beside the base when loaded.

    Of a sidecar that was trained beside earlier ones it is that one alone; it says where they are.
    """

    trained_only: ClassVar[bool] = True

    bits: int | None = None
    """1, 2 or 4: each trained matrix as its difference from the frozen one, in so many bits a
    number; null = whole."""

    def __post_init__(self) -> None:
        """Check `bits` (ConfigError)."""
        super().__post_init__()
        check_bits(self.bits)

    def write(
        self,
        model: PreTrainedModel,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase | None,
        inplace: bool,
    ) -> None:
        """Write what `load_sidecar` reads."""
        whole = model
        if not isinstance(model, BranchedForCausalLM):  # of which it is the newest
            whole = expanded(model, "sidecar")
        save_sidecar(whole, folder, bits=self.bits)
        if self.bits is not None and packed_bits(whole) != self.bits:
            log.warning(
                "In %d bits the trained branch is another than the one alpha was chosen for: "
                "measure again with `controlllm calibrate`.",
                self.bits,
            )
