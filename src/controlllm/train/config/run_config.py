"""The run config: one typed object that says everything about a run and can repeat it."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from controlllm.checkpoint import DTYPES, LoadOptions
from controlllm.common.errors import ConfigError
from controlllm.common.facts import Read, check_values, setting
from controlllm.common.packages.quantizers import QUANTIZERS, Quantizer
from controlllm.common.settings import require_settings, value_at
from controlllm.data import DataConfig
from controlllm.evaluate import OwnTextConfig
from controlllm.expansion import AdapterConfig, ExpansionConfig, trains_interpolators
from controlllm.train.config.compatibility import check_support
from controlllm.train.config.config_io import (
    build,
    flat,
    merge,
    read_yaml,
    require_secrets,
    write_yaml,
)
from controlllm.train.config.debug_config import DebugConfig
from controlllm.train.config.evaluation_config import EvaluationConfig
from controlllm.train.config.logging_config import LoggingConfig
from controlllm.train.config.method_config import FreezeConfig, KLConfig, settled
from controlllm.train.config.methods import METHODS
from controlllm.train.config.parallel_config import ParallelConfig
from controlllm.train.config.presets import PRESETS, preset_values
from controlllm.train.config.registries import LOGGERS
from controlllm.train.config.rehearsal_config import RehearsalConfig
from controlllm.train.config.training_config import TrainingConfig
from controlllm.train.config.unread import refuse_unread
from controlllm.train.config.ways import WAYS

__all__ = [
    "AdapterConfig",
    "DebugConfig",
    "EvaluationConfig",
    "FreezeConfig",
    "KLConfig",
    "LoggingConfig",
    "ModelConfig",
    "OwnTextConfig",
    "ParallelConfig",
    "RehearsalConfig",
    "RunConfig",
    "TrainingConfig",
    "tell_without_effect",
]

log = logging.getLogger(__name__)


def _only(section: str) -> Read:
    """Which method reads a section of its own."""
    return Read(
        lambda run: METHODS.get(run.method).section == section, f"only method={section} reads it"
    )


@dataclass
class ModelConfig(LoadOptions):
    """Which base model is taken, and how it is loaded."""

    model_name_or_path: str | None = None
    """Hub name or folder of the base model (or of an expanded one to train further)."""
    dtype: str = setting("float32", choices=DTYPES)
    """Type of the loaded weights; `auto` = as stored. What mixed precision trains is float32."""
    quantize_base: str | None = setting(None, choices=QUANTIZERS.names)
    """Hold the linear layers of the frozen blocks in few bits: `int8` or `nf4` by torchao, once the
    base is expanded; `bnb_int8`, `bnb_nf4` or `bnb_nf4_double` (scales quantised, too) by
    bitsandbytes, while it is loaded. The run trains beside that base and measures against it."""
    device: str = setting("auto", may_change=True)
    """Where to train: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "model")
        if self.model_name_or_path is not None and not self.model_name_or_path.strip():
            raise ConfigError("model.model_name_or_path is empty; name a model or a folder.")
        if self.quantize_copies is not None:
            raise ConfigError(
                f"model.quantize_copies={self.quantize_copies}: copies train in full; the option "
                "is for a trained model that answers (chat, eval, serve). Leave it out."
            )


class _Beside(str):
    """The value of `preset` or `continue_from` in a config that knows what was given beside it.

    A preset's values are laid below what was given then; `given` has the dotted names of that.
    """

    given: frozenset[str] = frozenset()


_KNOWS = ("preset", "continue_from")


@dataclass
class RunConfig:
    """One run: a base model, how it learns, from what, for how long, and what is logged."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The base model."""
    method: str = setting("control", choices=METHODS.names)
    """`control`: expand and train the copies. To compare with: `full` (train all weights), `lora`
    (PEFT's adapters), `freeze` (train a few blocks), `stack` (LLaMA-Pro), `replay` (full tuning
    with data.replay), `kl` (full tuning, held to the base). Docs: docs/baselines.md."""
    preset: str | None = setting(None, choices=PRESETS, may_change=True)
    """`paper` (the authors' settings), `retain` (least forgetting without old data; can be merged
    back), `sidecar` (learns more at a small budget; not to be merged), `plain` (full tuning with
    rehearsal, to be averaged with its base), `adapter` (LoRA with it), or null. Defaults only:
    every value given beside it counts more. Docs: docs/quickstart.md."""
    continue_from: str | None = setting(None, may_change=True)
    """Learn this after an earlier run: its folder, a checkpoint or a sidecar of it. Base and
    expansion come from there, and it is protected as the base is. Docs: docs/sequences.md."""
    continue_by: str = setting(
        "one",
        choices=WAYS.names,
        read=Read(lambda run: run.continue_from is not None, "continue_from names no run"),
    )
    """How: `one` (the same copies go on), `branch` (a new sidecar beside the earlier ones, frozen
    ones: alpha 0 is that run), `fold` (the earlier run is collapsed and expanded anew), `joint`
    (from the base, on all data together: the upper bound)."""
    continue_trust: bool = setting(
        False,
        may_change=True,
        read=Read(lambda run: run.continue_from is not None, "continue_from names no run"),
    )
    """Train on what the earlier runs' configs name outside of their folders: the data that `joint`
    learns again, prompts of rehearsal. Whoever made the runs chose those files of this machine."""
    expansion: ExpansionConfig = setting(
        factory=ExpansionConfig,
        read=Read(
            lambda run: METHODS.get(run.method).expands,
            "only method=control and method=stack read it",
        ),
    )
    """The expansion (methods `control` and `stack`)."""
    peft: AdapterConfig = setting(
        factory=AdapterConfig,
        read=Read(
            lambda run: run.adapters is not None,
            "the run trains no adapters; set peft.type, or method=lora",
        ),
    )
    """Adapters: of the base (method `lora`), or of the blocks that are not expanded (`control`)."""
    freeze: FreezeConfig = setting(factory=FreezeConfig, read=_only("freeze"))
    """What trains (method `freeze`)."""
    kl: KLConfig = setting(factory=KLConfig, read=_only("kl"))
    """The pull to the base (method `kl`)."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training, replay, learn and retain data."""
    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)
    """Self-rehearsal."""
    own_text: OwnTextConfig = field(default_factory=OwnTextConfig)
    """Own text of the base: measured, never trained on."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The loop."""
    evaluation: EvaluationConfig = setting(factory=EvaluationConfig, may_change=True)
    """What is measured besides losses: texts that the model writes."""
    parallel: ParallelConfig = setting(factory=ParallelConfig, may_change=True)
    """How several processes share the model."""
    logging: LoggingConfig = setting(factory=LoggingConfig, may_change=True)
    """Metric loggers."""
    debug: DebugConfig = setting(factory=DebugConfig, may_change=True)
    """Profiles, the hunt for NaN, the watchdog."""

    def __post_init__(self) -> None:
        """Check what concerns several sections (ConfigError)."""
        check_values(self, "")
        method = METHODS.get(self.method)
        if self.preset is not None and not isinstance(self.preset, _Beside):
            raise ConfigError(
                f"RunConfig(preset={self.preset!r}) cannot tell which values you gave beside it; "
                f"use RunConfig.from_dict({{'preset': {self.preset!r}, ...}})."
            )
        check_support(self)
        if self.logging.integrations and self.training.backend != "hf":
            raise ConfigError(
                f"logging.report_to={self.logging.integrations} are loggers of "
                "transformers.Trainer; set training.backend=hf, or take any of "
                f"{', '.join(LOGGERS.names())}."
            )
        if self.training.alpha_sampling is not None and not method.expands:
            raise ConfigError(
                f"training.alpha_sampling={self.training.alpha_sampling!r} (the presets "
                f"'retain' and 'sidecar' set it, too) needs method='control'; method="
                f"{self.method!r} has no alpha. Leave out the preset, or set "
                "training.alpha_sampling to null."
            )
        method.check(self)
        if self.continue_from is not None and not method.expands:
            raise ConfigError(
                f"continue_from={self.continue_from!r} needs method='control' or 'stack', whose "
                f"copies go on; method={self.method!r} has none. Name the earlier run as "
                "model.model_name_or_path to train it further as it is."
            )
        if method.expands:
            below = preset_values(self.preset) if self.preset is not None else {}
            expansion = method.settle(self.expansion)
            self.expansion = settled(expansion, self.training, below.get("expansion", {}))
        if self.peft.type is not None and not method.takes_adapters:
            raise ConfigError(
                f"peft.type={self.peft.type!r} needs method='lora', or 'control' for adapters on "
                f"top of an expanded model; method={self.method!r} has none. Set it to null."
            )
        self.own_text.check_names(self.data.retain)
        self.evaluation.generation.sources(self.data)
        refuse_unread(self)

    @property
    def adapters(self) -> str | None:
        """The type of the adapters that the run trains, if any.

        >>> RunConfig(method="lora").adapters, RunConfig().adapters
        ('lora', None)
        """
        return self.peft.type or METHODS.get(self.method).adapters

    @property
    def quantizer(self) -> Quantizer | None:
        """How the base is quantised; None if it is not."""
        kind = self.model.quantize_base
        return None if kind is None else QUANTIZERS.get(kind)

    @property
    def measures(self) -> bool:
        """Whether there is any held-out set to measure: the user's, or own text."""
        return bool(self.data.learn or self.data.retain) or self.own_text.measured_in(self)

    @property
    def trains_interpolators(self) -> bool:
        """Whether anything that joins branches trains."""
        return METHODS.get(self.method).expands and trains_interpolators(self.expansion)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from nested dicts, the preset (if named) laid under them.

        >>> run = RunConfig.from_dict({"preset": "retain", "training": {"max_steps": 50}})
        >>> run.training.alpha_sampling, run.training.max_steps
        ([0.2, 0.8], 50)

        Raises:
            ConfigError: for an unknown key (with the nearest name), or a wrong type or value.
        """
        preset = values.get("preset")
        below = {} if preset is None else preset_values(preset)
        known = {name: values.get(name) for name in _KNOWS}
        beside = {name: _Beside(value) for name, value in known.items() if isinstance(value, str)}
        for one in beside.values():
            one.given = frozenset(name for name, _ in flat(values))
        return build(cls, merge(merge(below, values), beside))

    @property
    def given(self) -> frozenset[str]:
        """Dotted names of what was given beside `continue_from`, as far as `from_dict` saw it."""
        return self.continue_from.given if isinstance(self.continue_from, _Beside) else frozenset()

    def to_dict(self) -> dict[str, Any]:
        """All values as nested plain dicts; `from_dict` of it gives an equal config."""
        values = asdict(self)
        return values | {name: values[name] and str(values[name]) for name in _KNOWS}

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML run file (`from_dict` says how it is understood and what it raises)."""
        values = read_yaml(path)
        require_secrets(values, str(path))
        require_settings(cls, values, str(path))
        return cls.from_dict(values)

    def to_yaml(self, path: str | Path) -> None:
        """Write the resolved config, secrets included; the run can be repeated from this file."""
        write_yaml(path, self.to_dict())


def tell_without_effect(values: Mapping[str, Any]) -> None:
    """Warn of a preset that changes nothing, as over a run file that gives every setting."""
    preset = values.get("preset")
    if preset is None:
        return
    below = preset_values(preset)
    pairs = [(name, value, value_at(values, name)) for name, value in flat(below)]
    if any(given is None for name, _, given in pairs if name != "preset"):
        return
    other = [f"{name}={given!r}" for name, value, given in pairs if given != value]
    if other:
        log.warning(
            "The preset %r changes nothing, as each of its settings is given; these differ from "
            "it: %s.",
            preset,
            ", ".join(other),
        )
