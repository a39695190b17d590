"""Floor 5: the story in four minutes, offline on two CPU cores: learn without forgetting.

    corpus      English about Python (old domain) and Python code (new domain), from this Python
    base/       a small Llama that has read the English and hardly any code (its README says how)
      |
    methods     full tuning | Control LLM as in the paper | the retain preset: train(RunConfig);
      |         each model on the held-out sets, at every setting of its dial
    forms       the calibrated model as sidecar, full and collapsed; reloaded, measured, asked
      |
    results     one table, results.json      picture     the plane of forgetting and learning

`story` tells it by `config`; `domains` holds texts and batches, `threads` the threads of a CPU.

`run(DemoConfig(output_dir=...))` is what `controlllm demo` calls. Only public faces of the
library are used, so the demo is also an example of how to use them.
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.demo.config import DemoConfig, base_model_path
    from controlllm.demo.story import run

__all__ = ["DemoConfig", "base_model_path", "run"]

__getattr__, __dir__ = lazy_names(__name__)
