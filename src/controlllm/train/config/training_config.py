"""How a run trains: steps, optimizer, precision, evaluation, checkpoints, budgets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlllm.common.errors import ConfigError
from controlllm.common.facts import Read, check_values, setting
from controlllm.common.settings import LARGEST, LARGEST_SEED, LONGEST_SECONDS, TINY, check_range
from controlllm.common.storage.remote import is_remote
from controlllm.train.config.optimizers import OPTIMIZERS
from controlllm.train.config.registries import BACKENDS, LOSS_TYPES, OWN_SCHEDULES, SCHEDULES

if TYPE_CHECKING:
    import torch

__all__ = ["LIGER_KERNELS", "TrainingConfig"]

LIGER_KERNELS = ("rms_norm", "swiglu", "rope", "fused_linear_cross_entropy")


def _read_by(*schedules: str) -> Read:
    """By these of our schedules; what one of a user's own reads is not known."""
    others = set(OWN_SCHEDULES) - set(schedules)
    return Read(
        lambda run: run.training.lr_scheduler_type not in others,
        f"only training.lr_scheduler_type={' or '.join(schedules)} reads it; set that, or leave it "
        "out",
        refuse=True,
    )


def _needing(name: str, why: str) -> Read:
    """Only where another setting of `training` is given."""

    def given(run: Any) -> bool:
        value = getattr(run.training, name)
        return value if isinstance(value, bool) else value is not None

    return Read(given, why, refuse=True)


_ASKING = Read(
    lambda run: run.measures or run.evaluation.suite is not None,
    "data.learn and data.retain name no set, and evaluation.suite no suite",
)
_MEASURING = Read(lambda run: run.measures, "data.learn and data.retain name no set")
_MIRRORING = Read(lambda run: run.training.remote_dir is not None, "training.remote_dir is not set")


@dataclass
class TrainingConfig:
    """Everything that has to do with time: the loop, its optimizer, its budgets, its files."""

    output_dir: str = setting("output", may_change=True)
    """Folder the run writes: config.yaml, metrics.jsonl, checkpoint-{step}/, best.json."""
    overwrite_output_dir: bool = setting(False, may_change=True)
    """Start afresh in a non-empty output_dir (its old checkpoints are removed first)."""
    backend: str = setting("native", choices=BACKENDS.names, may_change=True)
    """Which loop trains: `native` (ours) or `hf` (transformers.Trainer), with the same losses."""
    seed: int = setting(42, at_most=LARGEST_SEED)
    """Seed of weights, data order, rehearsal sampling and alpha sampling: 0 to 2^32 - 1."""

    max_steps: int = setting(
        1000,
        at_least=1,
        read=Read(
            lambda run: run.training.num_train_epochs is None,
            "training.num_train_epochs sets the length of the run",
        ),
    )
    """Optimizer steps to train; ignored when num_train_epochs is given."""
    num_train_epochs: float | None = setting(None, at_least=TINY)
    """Passes over data.train instead of max_steps (turned into steps by the sources' sizes)."""
    max_tokens: int | None = setting(None, at_least=1, may_change=True)
    """Stop after this many real training tokens (checked after each step)."""
    max_seconds: float | None = setting(None, at_least=TINY, may_change=True)
    """Stop after this many seconds of training steps (no evaluation), summed over resumes."""

    per_device_train_batch_size: int = setting(8, at_least=1)
    """Rows of data.max_length tokens in one micro-batch."""
    per_device_eval_batch_size: int = setting(8, at_least=1, may_change=True, read=_ASKING)
    """Rows in one evaluation batch."""
    gradient_accumulation_steps: int = setting(
        1,
        at_least=1,
        read=Read(
            lambda run: run.training.total_train_batch_size is None,
            "training.total_train_batch_size sets the number of micro-batches; leave one out",
            refuse=True,
        ),
    )
    """Micro-batches per optimizer step on each process; the result is that of one big batch."""
    total_train_batch_size: int | None = setting(None, at_least=1)
    """Rows of an optimizer step over all processes and micro-batches, instead of
    gradient_accumulation_steps: it stays the same on any number of processes."""

    loss_type: str = setting("ce", choices=LOSS_TYPES.names)
    """ce (cross-entropy), dft, eaft (weighted: docs/training-options.md), or a registered name."""
    optim: str = setting("adamw", choices=OPTIMIZERS.names)
    """adamw, or with moments in few bits (by torchao): adamw_8bit, adamw_4bit, adamw_fp8."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    min_lr_rate: float = setting(
        0.1, at_most=1, read=_read_by("cosine", "linear", "warmup_stable_decay")
    )
    """Learning rate at the end of the schedule, as a share of the peak (cosine, linear,
    warmup_stable_decay)."""
    interpolator_learning_rate: float | None = setting(
        None,
        at_least=TINY,
        read=Read(
            lambda run: run.trains_interpolators,
            "no interpolator trains (expansion.train_alpha, or a token gate such as dlerp)",
        ),
    )
    """Peak learning rate of the interpolators; null = learning_rate."""
    warmup_steps: float = 0.05
    """Linear warm-up: a number of steps, or (below 1) a share of all steps."""
    lr_scheduler_type: str = setting("cosine", choices=SCHEDULES.names)
    """After the warm-up: cosine, linear, constant, warmup_stable_decay, step, or a
    registered name."""
    lr_decay_steps: float = setting(0.2, read=_read_by("warmup_stable_decay"))
    """warmup_stable_decay: the last so many steps decay, or (below 1) that share of all steps."""
    lr_decay_type: str = setting(
        "linear", choices=("linear", "cosine", "1-sqrt"), read=_read_by("warmup_stable_decay")
    )
    """warmup_stable_decay: shape of the decay: linear, cosine or 1-sqrt."""
    lr_milestones: list[float] = setting(factory=list)
    """step: the rate is multiplied by lr_gamma after so many steps, or (below 1) such shares of all
    steps."""
    lr_gamma: float = setting(0.1, at_most=1, read=_read_by("step"))
    """step: what the rate is multiplied by at each milestone."""
    weight_decay: float = 0.0
    """AdamW weight decay of matrices (never of norms, biases, embeddings or interpolators)."""
    weight_decay_ratio: float | None = setting(None, at_least=TINY)
    """Weight decay as a multiple of each step's learning rate, instead of weight_decay: the authors
    had 0.1, which decays by next to nothing."""
    adam_beta1: float = setting(0.9, at_most=1)
    """AdamW decay of the first moment."""
    adam_beta2: float = setting(0.999, at_most=1)
    """AdamW decay of the second moment."""
    adam_epsilon: float = 1e-8
    """AdamW epsilon."""
    max_grad_norm: float = 1.0
    """Gradient norm to clip to; 0 = no clipping."""

    bf16: bool = False
    """Compute under bfloat16 autocast; trained weights are kept in float32."""
    worst_case_first: bool = setting(False, may_change=True)
    """Begin with a pass over the largest batch that can come, so that running out of memory
    happens in the first minute; it leaves no trace in the run."""
    gradient_checkpointing: bool = setting(False, may_change=True)
    """Recompute activations in the backward pass: less memory, about a third more time."""
    gradient_checkpointing_policy: str = setting(
        "full",
        choices=("full", "selective"),
        may_change=True,
        read=_needing("gradient_checkpointing", "it needs training.gradient_checkpointing=true"),
    )
    """What is recomputed: `full` a whole block; `selective` all but matrix products and attention,
    whose results are kept: more memory than full, hardly more time than none."""
    loss_chunk_size: int | None = setting(None, at_least=1, may_change=True)
    """Compute the logits of so many target positions at a time (1024 to 4096 is usual), rehearsed
    ones and the base's among them, so that they never exist all at once; null = all at once."""
    torch_compile: bool = False
    """Compile frozen blocks and copies one by one (torch.compile); the first steps take longer."""
    use_liger_kernel: bool = False
    """Compute norms, MLPs, rotary embeddings and the loss by Liger's Triton kernels: less memory
    and time on a GPU. Needs the extra `liger`."""
    liger_kernel_config: dict[str, bool] = setting(
        factory=dict,
        choices=LIGER_KERNELS,
        read=_needing("use_liger_kernel", "it needs training.use_liger_kernel=true"),
    )
    """Which of them: rms_norm, swiglu, rope, fused_linear_cross_entropy; what is left out is on."""
    alpha_sampling: list[float] | None = None
    """[low, high]: draw one alpha per optimizer step, so that the whole dial is trained."""

    eval_steps: int = setting(100, at_least=1, may_change=True, read=_ASKING)
    """Optimizer steps between measurements of data.learn and data.retain; also before and after."""
    save_steps: int = setting(500, at_least=1, may_change=True)
    """Optimizer steps between checkpoints; one is always written at the end."""
    save_total_limit: int | None = setting(2, at_least=1, may_change=True)
    """Keep only so many newest checkpoints; null = all. The best one is never removed."""
    resume_from_checkpoint: str = setting("auto", may_change=True)
    """`auto` (the newest whole checkpoint of output_dir or remote_dir), `never`, or a checkpoint
    (a folder or an address)."""
    remote_dir: str | None = setting(None, may_change=True)
    """Address (`hdfs://`, `webhdfs://`, `s3://`, ...) that each checkpoint is copied to; `auto`
    resumes from there where output_dir has no newer one. Docs: docs/hdfs.md."""
    remote_storage_options: dict[str, Any] = setting(
        factory=dict,
        read=Read(
            lambda run: _MIRRORING.when(run) or is_remote(run.training.resume_from_checkpoint),
            "neither training.remote_dir nor training.resume_from_checkpoint is an address",
        ),
    )
    """For the client of remote_dir (`user`, `endpoint_url`, ...); secrets: see docs/hdfs.md."""
    remote_timeout: float = setting(
        60.0, at_least=TINY, at_most=LONGEST_SECONDS, may_change=True, read=_MIRRORING
    )
    """The longest wait for remote_dir's server, in seconds; beyond it training stops."""

    max_forgetting: float | dict[str, float] | None = setting(
        None,
        may_change=True,
        read=Read(
            lambda run: bool(run.data.retain or run.continue_from) or run.own_text.measured_in(run),
            "it is a budget for data.retain, which names no set, and own_text.measure is false; "
            "name a set, or leave it out",
            refuse=True,
        ),
    )
    """Budget in nats per token: at the best checkpoint no retain set has lost more than this. Where
    a run goes on from others also by stage, `{base: 0.02, a: 0.05}`: a stage that is not named has
    none."""
    stop_on_budget: bool = setting(
        False,
        may_change=True,
        read=_needing("max_forgetting", "it needs training.max_forgetting, the budget to stop at"),
    )
    """Stop training at the first evaluation that breaks max_forgetting."""

    def __post_init__(self) -> None:
        """Check every value (ConfigError)."""
        check_values(self, "training")
        if not self.learning_rate and not self.interpolator_learning_rate:
            raise ConfigError("training.learning_rate=0 trains nothing; it must be above 0.")
        if isinstance(self.max_forgetting, dict):
            for stage, most in self.max_forgetting.items():
                check_range(f"training.max_forgetting.{stage}", most, 0, LARGEST)
        self._check_alpha_sampling()
        self._check_schedule()

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
                f"training.total_train_batch_size={total} is not a multiple of "
                f"per_device_train_batch_size={rows} on {world_size} processes; take one of "
                f"{rows * world_size}, or fewer rows for each."
            )
        return total // (rows * world_size)

    @property
    def autocast_dtype(self) -> "torch.dtype | None":
        """What mixed precision computes in; None = in the weights' own type."""
        import torch  # Late: a config is also read where nothing is computed.

        return torch.bfloat16 if self.bf16 else None

    @property
    def liger_kernels(self) -> tuple[str, ...]:
        """The kernels of Liger that are on."""
        given = self.liger_kernel_config
        every = LIGER_KERNELS if self.use_liger_kernel else ()
        return tuple(name for name in every if given.get(name, True))

    @property
    def fuses_loss(self) -> bool:
        """Whether head and cross-entropy are one kernel of Liger."""
        return "fused_linear_cross_entropy" in self.liger_kernels

    def _check_schedule(self) -> None:
        if self.weight_decay and self.weight_decay_ratio is not None:
            raise ConfigError(
                f"training.weight_decay={self.weight_decay} and training.weight_decay_ratio="
                f"{self.weight_decay_ratio} cannot both be given; leave one of them out."
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
