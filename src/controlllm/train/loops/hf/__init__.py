"""`transformers.Trainer` as the loop, on the same run config.

| module | what it holds |
|---|---|
| `trainer` | `ControlLLMTrainer`: batches, loss and books are ours, the loop is the Trainer's |
| `arguments` | what the Trainer is told of a run config |
| `zero` | the trained state of DeepSpeed's engine |
"""

from controlllm.train.loops.hf.trainer import ControlLLMTrainer, train_with_hf

__all__ = ["ControlLLMTrainer", "train_with_hf"]
