"""What `transformers.Trainer` is told of a run config."""

from typing import Any

from transformers import TrainingArguments

from controlllm.train.config.parallel_config import ZERO
from controlllm.train.setup.bench import Bench

__all__ = ["training_arguments"]


def training_arguments(bench: Bench) -> TrainingArguments:
    """The Trainer's own logging, evaluation, saving and clipping are off: we keep the books."""
    run, training = bench.run, bench.run.training
    sharing: dict[str, Any] = {"max_grad_norm": 0.0}
    if run.parallel.strategy in ZERO:
        sharing = {
            "deepspeed": bench.engine_settings,
            "accelerator_config": {"use_configured_state": True},
            # The engine clips, and computes in its own precision.
            "max_grad_norm": training.max_grad_norm,
            "bf16": training.mixed_precision == "bf16",
        }
    return TrainingArguments(
        output_dir=training.output_dir,
        max_steps=bench.total_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=bench.micro_batches,
        seed=training.seed,
        use_cpu=bench.device.type == "cpu",
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
