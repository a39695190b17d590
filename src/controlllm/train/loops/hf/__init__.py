"""`transformers.Trainer` as the loop, on the same run config.

trainer  `transformers.Trainer` on the same run config
zero     The trained state of DeepSpeed's ZeRO engine, which holds it in parts
"""

from controlllm.train.loops.hf.trainer import ControlLLMTrainer, train_with_hf

__all__ = ["ControlLLMTrainer", "train_with_hf"]
