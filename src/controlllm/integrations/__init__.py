"""Beside the floors: what other tools need to be told. Nothing inside the package imports it.

| module | for |
|---|---|
| `callback` | trainers built on `transformers.Trainer` (TRL's among them) |
| `peft` | PEFT: an expansion as an adapter (`get_peft_model`, `load_adapter`); import it by name |
| `reference` | trainers that need a reference model: the base inside, no second copy |
| `trl` | TRL: its SFT, DPO, KTO, GRPO and RLOO trainers on an expanded model |
| `axolotl` | axolotl, as a plugin: `adapter: controlllm` |
| `swift` | ms-swift, as an external plugin: `--tuner_type controlllm` |
| `mergekit` | mergekit: the trained branch as a plain model, and a recipe of its alphas |
| `vllm` | vLLM: a plugin that serves expanded models, alpha chosen by each request |
| `sglang` | SGLang: an external model package; not run |
| `neighbours` | what the plugins share |
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.integrations.callback import ControlLLMCallback
    from controlllm.integrations.reference import BaseReference

__all__ = ["BaseReference", "ControlLLMCallback"]

__getattr__, __dir__ = lazy_names(__name__)
