"""What `controlllm eval` may be told."""

from dataclasses import dataclass, field
from typing import Literal

from controlllm.checkpoint import LoadOptions
from controlllm.cli.kit.benchmarks import OF_BENCHMARKS, BenchmarkOptions
from controlllm.cli.kit.sets import as_numbers
from controlllm.common.errors import ConfigError
from controlllm.common.facts import setting
from controlllm.common.settings import Rule, check_said
from controlllm.data import DataConfig
from controlllm.evaluate.forgetting.alphas import check_settings

__all__ = ["EvalOptions"]

_OF_MODELS = tuple(
    Rule(name, lambda one: one.asked, "only --suite and --tasks read it; leave it out")
    for name in ("collapsed", "engine", "stored")
)


@dataclass
class EvalOptions(BenchmarkOptions):
    """Measure loss and perplexity on files, and ask benchmarks, for base and trained model.

    A run folder brings its own sets (data.learn, data.retain) along.
    """

    model: str
    """Run folder, checkpoint, sidecar, model folder or Hub name."""
    files: str | list[str] = field(default_factory=list)
    """Files to measure the loss on, with commas between them (or a list)."""
    data: DataConfig = field(default_factory=DataConfig)
    """How files are read; data.learn and data.retain are measured too."""
    nproc: int | Literal["auto"] = setting(1, at_least=1)
    """Processes of this machine that share the work, each with the whole model; `auto` = one for
    each visible GPU."""
    batch_size: int = setting(8, at_least=1)
    """Rows of one batch."""
    alpha: str | float | list[float] | None = None
    """Alpha to measure at; null = as it was saved. Several (0,0.3,1) are asked --suite and --tasks
    one after the other, 0 being the base."""
    collapsed: bool = False
    """Ask --suite and --tasks of the model collapsed into the base's form, too."""
    reference: str | None = None
    """Base to compare a model with that does not carry it (no expansion, no adapters)."""
    output: str | None = None
    """JSON file to write all numbers to."""
    engine: str = setting("hf", choices=("hf", "vllm"))
    """What computes --suite and --tasks: transformers in this process, or vLLM where it is
    installed, which loads folders of whole weights only (plain or collapsed models)."""
    stored: bool = False
    """Read the answers of the last such evaluation again, without its models: after a metric or an
    extractor has changed. What the store lacks is an error."""
    load: LoadOptions = field(default_factory=lambda: LoadOptions(device="auto"))
    """How the model is loaded."""

    def __post_init__(self) -> None:
        """Check the values, and that what is said is used.

        Raises:
            ConfigError: with the option and what to do.
        """
        super().__post_init__()
        check_settings("alpha", self.alphas)
        check_said(self, (*OF_BENCHMARKS, *_OF_MODELS))
        if self.engine == "vllm" and (self.alpha is not None or self.collapsed):
            raise ConfigError(
                "engine=vllm has no dial: export the collapsed model, and evaluate that folder."
            )
        if self.stored and (self.alpha is not None or self.collapsed or self.reference):
            raise ConfigError(
                "stored=true reads the models of the last evaluation; leave alpha, collapsed and "
                "reference out."
            )
        if len(self.alphas) > 1 and not self.asked:
            raise ConfigError("several alphas are for --suite and --tasks; give one.")

    @property
    def alphas(self) -> list[float]:
        """The settings of the dial that are named."""
        return [] if self.alpha is None else as_numbers("alpha", self.alpha, float)
