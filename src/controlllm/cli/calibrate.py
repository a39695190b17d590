"""`controlllm calibrate`: the alpha that learns most within a budget of forgetting."""

from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from controlllm.checkpoint import Kind, LoadOptions, locate
from controlllm.cli.kit.parsing import parse_options
from controlllm.cli.kit.sets import UNREAD, Sets, load_sets, tell_size
from controlllm.cli.kit.stage_sets import calibrate_defaults
from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, rules_of, setting
from controlllm.common.settings import check_said
from controlllm.common.storage.checksums import resealed
from controlllm.common.storage.files import read_json, require_writable, write_json, write_text
from controlllm.common.storage.lock import occupied
from controlllm.common.storage.remote import is_remote, shown
from controlllm.common.text.progress import stage
from controlllm.data import DataConfig, SourceConfig
from controlllm.evaluate import OwnTextConfig
from controlllm.evaluate.forgetting.alphas import DEFAULT_ALPHAS, check_budget, check_settings
from controlllm.expansion.files.records import SIDECAR_CONFIG

__all__ = ["CalibrateOptions", "run"]


@dataclass
class CalibrateOptions:
    """Sweep alpha on the retain and learn sets and keep the one that learns most in the budget.

    A model that is not expanded (full tuning, LoRA) has another dial: its weight in the average
    with its base, --reference; the chosen average is written as a plain model.

    Of a run that was learned beside earlier ones (continue_by=branch), and of several --sidecars,
    all dials are searched. A sidecar or a full expanded model gets the alpha written into its own
    config; of a run or a checkpoint a calibrated sidecar is written, of several sidecars one folder
    with all of them. The curve goes beside it as JSON and PNG.
    """

    model: str
    """Run folder, checkpoint, sidecar or full expanded model; with --sidecars their base."""
    sidecars: dict[str, str] = field(default_factory=dict)
    """Several sidecars on the base that MODEL is: --sidecars.maths FOLDER --sidecars.zh FOLDER;
    needs --output."""
    reference: str | None = None
    """Of a model that is not expanded: the one that it was trained from; adapters carry it."""
    max_forgetting: float = 0.05
    """Budget: how many nats per token each retain set may lose."""
    alphas: list[float] = field(default_factory=lambda: list(DEFAULT_ALPHAS))
    """Settings to measure: alphas, or weights in the average."""
    refine_steps: int = 2
    """How often the gap above the best alpha is halved and measured again."""
    data: DataConfig = field(default_factory=DataConfig)
    """data.learn and data.retain; a run folder brings its own, and of runs that it goes on from
    (but for folded ones) their data.learn."""
    own_text: OwnTextConfig = field(default_factory=OwnTextConfig)
    """What the base writes: the retain set where data.retain names none, and the certificate."""
    batch_size: int = setting(8, at_least=1)
    """Rows of one batch."""
    output: str | None = None
    """Folder for what is calibrated; null = in place, or <run>/calibrated for a run."""
    overwrite: bool = False
    """Replace an output folder that holds a saved model."""
    load: LoadOptions = field(default_factory=lambda: LoadOptions(device="auto"))
    """How the model is loaded."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        self.load.require_full_copies()
        check_budget(self.max_forgetting)
        check_settings("alphas", self.alphas)
        check_values(self, "")


def run(argv: list[str]) -> None:
    """Sweep, print the curve, and write the chosen alpha, the curve and its picture."""
    below: dict[str, Any] = {}

    def defaults(given: dict[str, Any], trusts: bool) -> dict[str, Any]:
        below.update(calibrate_defaults(given, trusts))
        return below

    options = parse_options(CalibrateOptions, argv, "calibrate", defaults, unread=UNREAD)
    rules = [rule for rule in rules_of(CalibrateOptions) if rule.field.startswith("own_text.")]
    check_said(options, rules, below)
    if not options.data.learn:
        raise ConfigError(
            "calibrate needs data.learn: sets to learn. Without data.retain the base writes by "
            "itself what is to be retained."
        )
    if not (options.data.retain or options.own_text.measured_in(options)):
        raise ConfigError("own_text.measure=false needs data.retain: sets to retain.")
    target = _target(options)
    with occupied(target.folder, "model") if target.in_place else nullcontext():
        _calibrate(options, target)


def _calibrate(options: CalibrateOptions, target: "_Target") -> None:
    from controlllm.checkpoint import export, load_named, make_form
    from controlllm.common.context import context_of
    from controlllm.data import eval_batches
    from controlllm.evaluate import (
        Certificate,
        Reference,
        Writer,
        averaging_curve,
        calibrate,
        certify,
        plot_curves,
        write_own_text,
    )
    from controlllm.evaluate.forgetting.averaging import averager
    from controlllm.evaluate.forgetting.losses import warn_if_not_finite
    from controlllm.expansion.files.packed import packed_bits

    with stage(f"loading {options.model}"):
        model, tokenizer, _ = load_named(options.model, options.sidecars, options.load)
        model, base = _beside_base(model, tokenizer, options)

    def sets(sources: list[SourceConfig]) -> Sets:
        return load_sets(sources, model, tokenizer, options.data, options.batch_size)

    learn, retain = sets(options.data.learn), sets(options.data.retain)
    longest = min(options.data.max_length, context_of(model) or options.data.max_length)
    data = replace(options.data, max_length=longest)
    own = options.own_text
    certificates: dict[str, Certificate] = {}
    with _own_text_folder(own) as folder:
        if own.measured_in(options):
            writer = Writer.base(model if base is None else base)
            written = write_own_text(writer, tokenizer, own, data, folder)
            for name, examples in written.items():
                retain[name] = eval_batches(examples, tokenizer, data, options.batch_size)
        several = len(getattr(model, "sidecars", ()))
        sweeps = several + 1 if several > 1 else 1  # At least: the search ends when none is better.
        settings = len({0.0, *options.alphas}) + 1 + options.refine_steps
        tell_size({**learn, **retain}, sweeps * settings)
        how = (options.max_forgetting, options.alphas, options.refine_steps)
        reference = None
        if base is None:
            found = calibrate(model, learn, retain, *how)
        else:
            found = averaging_curve((base, model), learn, retain, *how)
            averager(base, model, model)(found.chosen.alpha)
            reference = Reference(model, copy=base)
        if own.measured_in(options):  # On sequences that have chosen nothing.
            rows = options.batch_size
            certificates = certify(
                model, tokenizer, folder, own, data, reference, rows, first_block=1
            )
    print(found.table())
    for name, certificate in certificates.items():
        print(f"{name} at {found.dial} {found.chosen.label}: {certificate}")
    losses = {
        f"{name} at {found.dial} {point.label}": report.loss
        for point in found.points
        for name, report in {**point.learn, **point.retain}.items()
    }
    warn_if_not_finite(losses, "the model")
    if not target.in_place:
        name = "sidecar" if base is None and not options.sidecars else "full"
        form = make_form(name, {"bits": packed_bits(model)})
        export(model, target.folder, form, tokenizer, overwrite=options.overwrite)
    told = {name: certificate.to_dict() for name, certificate in certificates.items()}
    with resealed(target.folder):  # An older curve, too, gives way.
        if target.in_place:
            _write_dial(target.folder, model)
        write_json(target.folder / "calibration.json", found.to_dict() | {"certificates": told})
        plot_curves({found.dial: found}, target.folder / "calibration.png")
    print(f"{found.dial} {found.chosen.label} is written to {target.folder}")
    off = [name for name, alpha in found.chosen.by_name.items() if name and alpha == 0]
    if off:
        print(
            f"Nothing is left of what {', '.join(off)} learned: the dial stands at 0. Only sets of "
            f"data.learn count as learned ({', '.join(learn)}); if it is to stay, add sets of its "
            "task, or allow more forgetting."
        )


def _beside_base(model: Any, tokenizer: Any, options: CalibrateOptions) -> tuple[Any, Any]:
    """The model, and its base where that is to be averaged with it; None of an expanded one."""
    from controlllm.cli.kit.reference import reference_of
    from controlllm.common.adapters import merge_adapters, remove_adapters
    from controlllm.evaluate.forgetting.expanded import is_expanded

    reference = reference_of(model, tokenizer, options.reference, options.load)
    if is_expanded(model):
        return model, None
    if reference is None:
        raise ConfigError(
            f"{shown(options.model)} is not expanded: its dial is its average with the model that "
            "it was trained from. Name that one: --reference."
        )
    if reference.copy is not None:
        return model, reference.copy
    base = deepcopy(model)
    remove_adapters(base)
    merge_adapters(model)
    return model, base


def _own_text_folder(own: OwnTextConfig) -> AbstractContextManager[str]:
    """Where own text is cached; no run's folder, which may be a stranger's."""
    return nullcontext(own.cache_dir) if own.cache_dir is not None else TemporaryDirectory()


class _Target(NamedTuple):
    folder: Path
    in_place: bool
    """Whether an existing config gets the chosen alpha, instead of a new sidecar."""


def _target(options: CalibrateOptions) -> _Target:
    """Where the result goes; found out before hours of measuring, if it cannot be written."""
    location = locate(options.model, options.load.storage_options)
    if options.sidecars and options.output is None:
        raise ConfigError(
            "several sidecars are written together, with their base; say where to: --output."
        )
    if options.output is None and is_remote(options.model):
        raise ConfigError(
            f"{shown(options.model)} lies on another machine; name a local folder to write to: "
            "--output."
        )
    in_place = options.output is None and location.kind in (Kind.SIDECAR, Kind.EXPANDED)
    if in_place and options.overwrite:
        raise ConfigError(
            f"overwrite=True would not be used: {options.model} gets the alpha in place; leave it "
            "out, or give --output."
        )
    if in_place:
        require_writable(location.path, folder=True)
        return _Target(Path(location.path), True)
    if options.output is None and location.kind is not Kind.CHECKPOINT:
        raise ConfigError(
            f"{options.model} is a {location.kind.value}; say where to write: --output."
        )
    folder = Path(options.output or Path(location.path).parent / "calibrated")
    from controlllm.checkpoint import require_free

    require_free(folder, options.overwrite)
    return _Target(folder, False)


def _write_dial(folder: Path, model: Any) -> None:
    """Put dials and mean alpha into a sidecar's or a full expanded model's config and card."""
    from controlllm.expansion.files.card import with_dial
    from controlllm.expansion.files.lineage import as_recorded

    name = SIDECAR_CONFIG if (folder / SIDECAR_CONFIG).is_file() else "config.json"
    config, measured = read_json(folder / name), model.config
    if named := config.get("sidecars"):
        for one in named:
            one["expansion"]["dial"] = as_recorded(model.expansions[one["name"]].dial)
    else:
        config["expansion"] |= {key: measured.expansion[key] for key in ("dial", "mean_alpha")}
    if measured.parents:  # With where those beside it stand.
        config["parents"] = measured.parents
    card = folder / "README.md"
    write_json(folder / name, config)
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        write_text(card, with_dial(text, measured.expansion.get("dial")))
