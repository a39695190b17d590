"""How a run trains: steps, optimizer, precision, evaluation, checkpoints, budgets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from controlllm.common.errors import ConfigError
from controlllm.common.registry import check_choice
from controlllm.common.settings import LARGEST_SEED, LONGEST_SECONDS, check_numbers
from controlllm.train.config.registries import OWN_SCHEDULES, SCHEDULES

__all__ = [
    "Backend",
    "DecayName",
    "MixedPrecision",
    "OptimizerName",
    "TrainingConfig",
]

Backend = Literal["native", "hf"]
OptimizerName = Literal["adamw", "adamw_8bit", "adamw_4bit", "adamw_fp8"]
DecayName = Literal["linear", "cosine", "1-sqrt"]
MixedPrecision = Literal["no", "bf16"]
CheckpointingPolicy = Literal["full", "selective"]
LigerKernel = Literal["rms_norm", "swiglu", "rope", "fused_linear_cross_entropy"]

_TINY = 1e-12
_LEAST = {
    **dict.fromkeys(
        (
            *("max_steps", "max_tokens", "eval_steps", "save_steps"),
            *("per_device_train_batch_size", "per_device_eval_batch_size", "save_total_limit"),
            *("gradient_accumulation_steps", "total_train_batch_size", "loss_chunk_size"),
        ),
        1,
    ),
    **dict.fromkeys(
        (
            *("num_train_epochs", "max_seconds", "interpolator_learning_rate"),
            *("weight_decay_ratio", "remote_timeout"),
        ),
        _TINY,
    ),
}
_MOST = {
    **dict.fromkeys(("min_learning_rate_ratio", "adam_beta1", "adam_beta2", "lr_gamma"), 1),
    "seed": LARGEST_SEED,
    "remote_timeout": LONGEST_SECONDS,
}


@dataclass
class TrainingConfig:
    """Everything that has to do with time: the loop, its optimizer, its budgets, its files."""

    output_dir: str = "output"
    """Folder the run writes: config.yaml, metrics.jsonl, checkpoint-{step}/, best.json."""
    overwrite_output_dir: bool = False
    """Start afresh in a non-empty output_dir (its old checkpoints are removed first)."""
    backend: Backend = "native"
    """Which loop trains: `native` (ours) or `hf` (transformers.Trainer), with the same losses."""
    seed: int = 42
    """Seed of weights, data order, rehearsal sampling and alpha sampling: 0 to 2^32 - 1."""

    max_steps: int = 1000
    """Optimizer steps to train; ignored when num_train_epochs is given."""
    num_train_epochs: float | None = None
    """Passes over data.train instead of max_steps (turned into steps by the sources' sizes)."""
    max_tokens: int | None = None
    """Stop after this many real training tokens (checked after each step)."""
    max_seconds: float | None = None
    """Stop after this many seconds of training steps (no evaluation), summed over resumes."""

    per_device_train_batch_size: int = 8
    """Rows of data.max_length tokens in one micro-batch."""
    per_device_eval_batch_size: int = 8
    """Rows in one evaluation batch."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step on each process; the result is that of one big batch."""
    total_train_batch_size: int | None = None
    """Rows of an optimizer step over all processes and micro-batches, instead of
    gradient_accumulation_steps: it stays the same on any number of processes."""

    optimizer: OptimizerName = "adamw"
    """adamw, or with moments in few bits (by torchao): adamw_8bit, adamw_4bit, adamw_fp8."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    min_learning_rate_ratio: float = 0.1
    """Learning rate at the end of the schedule, as a share of the peak (cosine, linear, wsd)."""
    interpolator_learning_rate: float | None = None
    """Peak learning rate of the interpolators; null = learning_rate."""
    warmup_steps: float = 0.05
    """Linear warm-up: a number of steps, or (below 1) a share of all steps."""
    lr_scheduler_type: str = "cosine"
    """After the warm-up: cosine, linear, constant, wsd (warm-up, stable, decay), step, or a
    registered name."""
    lr_decay_steps: float = 0.2
    """wsd: the last so many steps decay, or (below 1) that share of all steps."""
    lr_decay_type: DecayName = "linear"
    """wsd: shape of the decay: linear, cosine or 1-sqrt."""
    lr_milestones: list[float] = field(default_factory=list)
    """step: the rate is multiplied by lr_gamma after so many steps, or (below 1) such shares of all
    steps."""
    lr_gamma: float = 0.1
    """step: what the rate is multiplied by at each milestone."""
    weight_decay: float = 0.0
    """AdamW weight decay of matrices (never of norms, biases, embeddings or interpolators)."""
    weight_decay_ratio: float | None = None
    """Weight decay as a multiple of each step's learning rate, instead of weight_decay: the authors
    had 0.1, which decays by next to nothing."""
    adam_beta1: float = 0.9
    """AdamW decay of the first moment."""
    adam_beta2: float = 0.999
    """AdamW decay of the second moment."""
    adam_epsilon: float = 1e-8
    """AdamW epsilon."""
    max_grad_norm: float = 1.0
    """Gradient norm to clip to; 0 = no clipping."""

    mixed_precision: MixedPrecision = "no"
    """`bf16` computes under bfloat16 autocast and keeps trained weights in float32."""
    worst_case_first: bool = False
    """Begin with a pass over the largest batch that can come, so that running out of memory
    happens in the first minute; it leaves no trace in the run."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    gradient_checkpointing_policy: CheckpointingPolicy = "full"
    """What is recomputed: `full` a whole block; `selective` all but matrix products and attention,
    whose results are kept: more memory than full, hardly more time than none."""
    loss_chunk_size: int | None = None
    """Compute the logits of so many target positions at a time, so that those of a large vocabulary
    never exist all at once (1024 to 4096 is usual), at no cost of time; null = all at once."""
    torch_compile: bool = False
    """Compile frozen blocks and copies one by one (torch.compile); the first steps take longer."""
    use_liger_kernel: bool = False
    """Compute norms, MLPs, rotary embeddings and the loss by Liger's Triton kernels: less memory
    and time on a GPU. Needs the extra `liger`."""
    liger_kernel_config: dict[LigerKernel, bool] = field(default_factory=dict)
    """Which of them: rms_norm, swiglu, rope, fused_linear_cross_entropy; what is left out is on."""
    alpha_sampling: list[float] | None = None
    """[low, high]: draw one alpha per optimizer step, so that the whole dial is trained."""

    eval_steps: int = 100
    """Optimizer steps between measurements of data.learn and data.retain; also before and after."""
    save_steps: int = 500
    """Optimizer steps between checkpoints; one is always written at the end."""
    save_total_limit: int | None = 2
    """Keep only so many newest checkpoints; null = all. The best one is never removed."""
    resume_from_checkpoint: str = "auto"
    """`auto` (the newest whole checkpoint of output_dir or remote_dir), `never`, or a checkpoint
    (a folder or an address)."""
    remote_dir: str | None = None
    """Address (`hdfs://`, `webhdfs://`, `s3://`, ...) that each checkpoint is copied to; `auto`
    resumes from there where output_dir has no newer one. Docs: docs/hdfs.md."""
    remote_storage_options: dict[str, Any] = field(default_factory=dict)
    """For the client of remote_dir (`user`, `endpoint_url`, ...); secrets: see docs/hdfs.md."""
    remote_timeout: float = 60.0
    """The longest wait for remote_dir's server, in seconds; beyond it training stops."""

    max_forgetting: float | None = None
    """Budget in nats per token: at the best checkpoint no retain set has lost more than this."""
    stop_on_budget: bool = False
    """Stop training at the first evaluation that breaks max_forgetting."""

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: naming the field, its value and what is allowed.
        """
        self._check_choices()
        self._check_numbers()
        self._check_alpha_sampling()
        self._check_schedule()
        self._check_liger()
        if self.total_train_batch_size is not None and self.gradient_accumulation_steps != 1:
            raise ConfigError(
                f"training.total_train_batch_size={self.total_train_batch_size} sets the number of "
                "micro-batches; leave out gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps}."
            )
        if self.stop_on_budget and self.max_forgetting is None:
            raise ConfigError(
                "training.stop_on_budget=True needs training.max_forgetting, the budget to stop at."
            )

    def micro_batches(self, world_size: int = 1) -> int:
        """Micro-batches per optimizer step on each of so many processes.

        Raises:
            ConfigError: `total_train_batch_size` cannot be cut so.
        """
        total, rows = self.total_train_batch_size, self.per_device_train_batch_size
        if total is None:
            return self.gradient_accumulation_steps
        if total % (rows * world_size):
            raise ConfigError(
                f"training.total_train_batch_size={total} is no multiple of "
                f"per_device_train_batch_size={rows} on {world_size} processes; take one of "
                f"{rows * world_size}, or fewer rows for each."
            )
        return total // (rows * world_size)

    @property
    def liger_kernels(self) -> tuple[str, ...]:
        """The kernels of Liger that are on."""
        given = self.liger_kernel_config
        every = get_args(LigerKernel) if self.use_liger_kernel else ()
        return tuple(name for name in every if given.get(name, True))

    @property
    def fuses_loss(self) -> bool:
        """Whether head and cross-entropy are one kernel of Liger."""
        return "fused_linear_cross_entropy" in self.liger_kernels

    def _check_liger(self) -> None:
        for name in self.liger_kernel_config:
            check_choice("training.liger_kernel_config", name, get_args(LigerKernel))
        if not self.use_liger_kernel:
            if self.liger_kernel_config:
                raise ConfigError(
                    "training.liger_kernel_config needs training.use_liger_kernel=true."
                )
            return
        if self.torch_compile:
            raise ConfigError(
                "training.use_liger_kernel and training.torch_compile were never tried together; "
                "leave one of them out."
            )
        if self.loss_chunk_size is not None and self.fuses_loss:
            raise ConfigError(
                f"training.loss_chunk_size={self.loss_chunk_size} and Liger's fused loss do the "
                "same; leave it out, or set training.liger_kernel_config: "
                "{fused_linear_cross_entropy: false}."
            )

    def _check_choices(self) -> None:
        check_choice("training.backend", self.backend, get_args(Backend))
        check_choice("training.optimizer", self.optimizer, get_args(OptimizerName))
        check_choice("training.lr_scheduler_type", self.lr_scheduler_type, SCHEDULES.names())
        check_choice("training.lr_decay_type", self.lr_decay_type, get_args(DecayName))
        check_choice("training.mixed_precision", self.mixed_precision, get_args(MixedPrecision))
        policy, policies = self.gradient_checkpointing_policy, get_args(CheckpointingPolicy)
        check_choice("training.gradient_checkpointing_policy", policy, policies)
        if policy != "full" and not self.gradient_checkpointing:
            raise ConfigError(
                f"training.gradient_checkpointing_policy={policy!r} needs "
                "training.gradient_checkpointing=true."
            )

    def _check_numbers(self) -> None:
        check_numbers(self, "training", _LEAST, _MOST)
        if not self.learning_rate and not self.interpolator_learning_rate:
            raise ConfigError("training.learning_rate=0 trains nothing; it must be above 0.")

    def _check_schedule(self) -> None:
        if self.weight_decay and self.weight_decay_ratio is not None:
            raise ConfigError(
                f"training.weight_decay={self.weight_decay} and training.weight_decay_ratio="
                f"{self.weight_decay_ratio} exclude one another; leave one of them out."
            )
        milestones, name = self.lr_milestones, self.lr_scheduler_type
        if name in OWN_SCHEDULES and bool(milestones) != (name == "step"):
            raise ConfigError(
                f"training.lr_milestones={milestones!r} and training.lr_scheduler_type={name!r} do "
                "not fit: step needs milestones, such as [0.8, 0.9], and no other schedule has any."
            )
        if any(one <= 0 for one in milestones) or sorted(set(milestones)) != milestones:
            raise ConfigError(
                f"training.lr_milestones={milestones!r} must be above 0 and rise; they count steps "
                "from the beginning of the run, or are shares of all steps."
            )

    def _check_alpha_sampling(self) -> None:
        interval = self.alpha_sampling
        if interval is None:
            return
        well_formed = isinstance(interval, Sequence) and len(interval) == 2
        numbers = well_formed and all(type(end) in (int, float) for end in interval)
        if not numbers or not 0 <= interval[0] < interval[1] <= 1:
            raise ConfigError(
                f"training.alpha_sampling={interval!r} is not a range; allowed: [low, high] with "
                "0 <= low < high <= 1, or null (one fixed alpha: expansion.alpha)."
            )
