"""The arguments of `transformers.Trainer` for a run config."""

from typing import Any

import torch
from transformers import TrainingArguments

from controlllm.train.setup.stages import Ready

__all__ = ["training_arguments"]


def training_arguments(ready: Ready) -> TrainingArguments:
    """Make the arguments. The Trainer's own logging, evaluation, saving and clipping are off."""
    run, training = ready.run, ready.run.training
    sharing: dict[str, Any] = {"max_grad_norm": 0.0}
    if run.parallel.way.by_deepspeed:
        sharing = {
            "deepspeed": ready.engine_settings,
            "accelerator_config": {"use_configured_state": True},
            # The engine clips, and computes in its own precision.
            "max_grad_norm": training.max_grad_norm,
            "bf16": training.autocast_dtype is torch.bfloat16,
        }
    return TrainingArguments(
        output_dir=training.output_dir,
        max_steps=ready.total_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=ready.micro_batches,
        seed=training.seed,
        use_cpu=ready.device.type == "cpu",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=run.logging.integrations,
        run_name=run.logging.run_name,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        **sharing,
    )
