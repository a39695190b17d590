"""Beside the floors: what other tools need to be told. Nothing inside the package imports it.

| module | for |
|---|---|
| `callback` | trainers built on `transformers.Trainer` (TRL's among them) |
| `peft` | PEFT: an expansion as an adapter (`get_peft_model`, `load_adapter`); import it by name |
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.integrations.callback import ControlLLMCallback

__all__ = ["ControlLLMCallback"]

__getattr__, __dir__ = lazy_names(
    __name__, {"ControlLLMCallback": "controlllm.integrations.callback"}
)
