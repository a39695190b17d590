"""Beside the floors: what other tools need to be told. Nothing inside the package imports it.

| module | for |
|---|---|
| `callback` | trainers built on `transformers.Trainer` (TRL's among them) |
| `axolotl` | axolotl, as a plugin: `adapter: controlllm` |
| `swift` | ms-swift, as an external plugin: `--tuner_type controlllm` |
| `mergekit` | mergekit: the trained branch as a plain model, and a recipe of its alphas |
| `neighbours` | what the plugins share |
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.integrations.callback import ControlLLMCallback

__all__ = ["ControlLLMCallback"]

__getattr__, __dir__ = lazy_names(
    __name__, {"ControlLLMCallback": "controlllm.integrations.callback"}
)
