"""`controlllm calibrate`: the alpha that learns most within a budget of forgetting."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from controlllm.checkpoint import Kind, LoadOptions, export, load_model, locate, require_free
from controlllm.cli.parsing import parse_options
from controlllm.cli.sets import UNREAD, Sets, load_sets, run_defaults
from controlllm.common.checksums import resealed
from controlllm.common.errors import ConfigError
from controlllm.common.files import read_json, write_json
from controlllm.common.occupied import occupied
from controlllm.common.remote import is_remote
from controlllm.data import DataConfig, SourceConfig
from controlllm.evaluate import DEFAULT_ALPHAS, calibrate
from controlllm.expansion.sidecar import SIDECAR_CONFIG

__all__ = ["CalibrateOptions", "run"]


@dataclass
class CalibrateOptions:
    """Sweep alpha on the retain and learn sets and keep the one that learns most in the budget.

    A sidecar or a full expanded model gets the alpha written into its own config; of a run or a
    checkpoint a calibrated sidecar is written. The curve goes beside it as JSON and PNG.
    """

    model: str
    """Run folder, checkpoint, sidecar or full expanded model."""

    max_forgetting: float = 0.05
    """Budget: how many nats per token each retain set may lose."""

    alphas: list[float] = field(default_factory=lambda: list(DEFAULT_ALPHAS))
    """Alphas to measure."""

    refine_steps: int = 2
    """How often the gap above the best alpha is halved and measured again."""

    data: DataConfig = field(default_factory=DataConfig)
    """data.learn and data.retain; a run folder brings its own."""

    batch_size: int = 8
    """Rows of one batch."""

    output: str | None = None
    """Folder for a calibrated sidecar; null = in place, or <run>/calibrated for a run."""

    overwrite: bool = False
    """Replace an output folder that holds a saved model."""

    load: LoadOptions = field(default_factory=lambda: LoadOptions(device="auto"))
    """How the model is loaded."""


def run(argv: list[str]) -> None:
    """Sweep, print the curve, and write the chosen alpha, the curve and its picture."""
    options = parse_options(CalibrateOptions, argv, "calibrate", run_defaults, unread=UNREAD)
    if not (options.data.learn and options.data.retain):
        raise ConfigError(
            "calibrate needs data.learn and data.retain: sets to learn and to retain."
        )
    target = _target(options)
    with occupied(target.folder, "model") if target.in_place else nullcontext():
        _calibrate(options, target)


def _calibrate(options: CalibrateOptions, target: "_Target") -> None:
    model, tokenizer = load_model(options.model, options.load)

    def sets(sources: list[SourceConfig]) -> Sets:
        return load_sets(sources, model, tokenizer, options.data, options.batch_size)

    curve = calibrate(
        model,
        sets(options.data.learn),
        sets(options.data.retain),
        options.max_forgetting,
        options.alphas,
        options.refine_steps,
    )
    print(curve.table())
    if target.in_place:
        _write_dial(target.folder, curve.chosen.alpha)
    else:
        export(model, target.folder, "sidecar", tokenizer, overwrite=options.overwrite)
    curve.save(target.folder / "calibration.json")
    curve.plot(target.folder / "calibration.png")
    print(f"alpha {curve.chosen.label} is written to {target.folder}")


@dataclass(frozen=True)
class _Target:
    """Where the chosen alpha goes.

    Attributes:
        folder: the folder.
        in_place: whether an existing config gets it, instead of a new sidecar.
    """

    folder: Path
    in_place: bool


def _target(options: CalibrateOptions) -> _Target:
    """Decide before hours of measuring whether the result can be written."""
    location = locate(options.model, options.load.storage_options)
    if options.output is None and is_remote(options.model):
        raise ConfigError(f"{options.model} is elsewhere; say where to write: --output.")
    in_place = options.output is None and location.kind in (Kind.SIDECAR, Kind.EXPANDED)
    if in_place:
        return _Target(Path(location.path), True)
    if options.output is None and location.kind is not Kind.CHECKPOINT:
        raise ConfigError(
            f"{options.model} is a {location.kind.value}; say where to write: --output."
        )
    folder = Path(options.output or Path(location.path).parent / "calibrated")
    require_free(folder, options.overwrite)
    return _Target(folder, False)


def _write_dial(folder: Path, alpha: float | None) -> None:
    """Put the dial into the config of a sidecar or of a full expanded model."""
    name = SIDECAR_CONFIG if (folder / SIDECAR_CONFIG).is_file() else "config.json"
    config = read_json(folder / name)
    config["expansion"]["dial"] = alpha
    with resealed(folder):
        write_json(folder / name, config)
