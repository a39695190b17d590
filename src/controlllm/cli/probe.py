"""`controlllm probe`: look inside a tuned model, and write one page on what is there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from controlllm.checkpoint import LoadOptions
from controlllm.cli.kit.parsing import as_list, parse_options
from controlllm.cli.kit.sets import UNREAD, run_defaults
from controlllm.common.errors import ConfigError
from controlllm.common.registry import check_choice
from controlllm.common.storage.files import require_writable, write_text
from controlllm.common.text.progress import stage
from controlllm.common.text.secrets import hidden
from controlllm.data import DataConfig, SourceConfig
from controlllm.evaluate.forgetting.alphas import check_settings
from controlllm.evaluate.judging.html import is_page
from controlllm.probe import StudySettings

if TYPE_CHECKING:
    from controlllm.probe import Finding, Study

__all__ = ["PROBE_UNREAD", "ProbeOptions", "run"]

LAYERS_BEGIN = (
    "# Written by controlllm probe: layers that surely carry learning (docs/probes.md).\n"
)
PROBE_UNREAD = (
    *UNREAD,
    *(f"data.{name}" for name in ("max_length", "max_eval_samples", "max_eval_tokens", "packing")),
)
"""Settings that probing does not read."""


@dataclass
class ProbeOptions(StudySettings):
    """Look inside a tuned model: one self-contained HTML page, a section for each probe.

    Texts of a run's own held-out sets are looked at, where none are given.
    """

    model: str
    """Run folder, checkpoint, sidecar or full expanded model."""
    texts: str | None = None
    """Texts of what was learned: a file or data set of any form that training reads; null = the
    first of data.learn."""
    retain_texts: str | None = None
    """Texts of what must not be forgotten; null = the first of data.retain, if there is one."""
    out: str = "probe.html"
    """The page."""
    probes: str | list[str] = field(default_factory=list)
    """Which, with commas between them (or a list): movement, alpha, tokens, blocks, lens,
    attention, analogies, dial, or your own of data.plugins; empty = all."""
    alpha: float | None = None
    """Alpha that the model is looked at; null = as it was saved."""
    layers: str | None = None
    """YAML file to write the layers to that leaving one block out suggests for a next expansion."""
    tensorboard: str | None = None
    """Folder for TensorBoard: numbers by layer, and the projector with forty analogies."""
    data: DataConfig = field(default_factory=DataConfig)
    """How texts are rendered; a run folder brings its own."""
    load: LoadOptions = field(default_factory=lambda: LoadOptions(device="auto"))
    """How the model is loaded."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        super().__post_init__()
        check_settings("alpha", [self.alpha])
        check_settings("alphas", self.alphas)


def run(argv: list[str]) -> None:
    """Look, print what came out, and write the page."""
    options = parse_options(ProbeOptions, argv, "probe", run_defaults, unread=PROBE_UNREAD)
    from controlllm.checkpoint import load_model
    from controlllm.data.loader.plugins import load_plugins
    from controlllm.probe import PROBES, Study, find, probe_page, read_texts

    _require_place(options)
    load_plugins(options.data)
    names = as_list(options.probes)
    for name in names:
        check_choice("probes", name, PROBES.names(), is_open=True)
    if options.layers is not None and names and "blocks" not in names:
        raise ConfigError("layers is what the probe `blocks` suggests: name it in --probes, too.")
    _refuse_unread(options, names)
    learn, retain = _sources(options)
    with stage(f"loading {options.model}"):
        model, tokenizer = load_model(options.model, options.load)
    study = Study(
        model,
        tokenizer,
        learn=read_texts(learn, tokenizer, options, options.data),
        retain=[] if retain is None else read_texts(retain, tokenizer, options, options.data),
        settings=options,
    )
    if options.alpha is not None:
        study.model.set_alpha(options.alpha)
    findings = find(study, names)
    _write(options, findings, probe_page(_title(options), _about(study, options), findings))


def _refuse_unread(options: ProbeOptions, names: list[str]) -> None:
    """Refuse what the probe `dial` alone is asked, where it is left out; bounds may stay."""
    from controlllm.probe.contract import OWN

    if not names or "dial" in names or not set(names) <= set(OWN):
        return
    usual = StudySettings()
    for name in ("alphas", "prompt"):
        if getattr(options, name) != getattr(usual, name):
            raise ConfigError(f"{name} is what the probe `dial` reads: name it in --probes, too.")


def _require_place(options: ProbeOptions) -> None:
    """Refuse before long work what would overwrite files of others."""
    from controlllm.probe.finding import MADE_BY

    require_writable(options.out)
    if Path(options.out).is_file() and not is_page(options.out, MADE_BY):
        raise ConfigError(
            f"out={options.out!r} exists and is no page of ours; choose another name."
        )
    if options.layers is not None:
        require_writable(options.layers)
        file = Path(options.layers)
        if file.is_file() and not file.read_bytes().startswith(LAYERS_BEGIN.encode()):
            raise ConfigError(
                f"layers={options.layers!r} exists and was not written by us; choose another name."
            )
    if options.tensorboard is not None:
        require_writable(options.tensorboard, folder=True)


def _sources(options: ProbeOptions) -> tuple[SourceConfig, SourceConfig | None]:
    """Where the texts lie."""
    given = [options.texts, options.retain_texts]
    sets = [options.data.learn, options.data.retain]
    learn, retain = (
        SourceConfig(path=path) if path is not None else next(iter(sources), None)
        for path, sources in zip(given, sets, strict=True)
    )
    if learn is None:
        raise ConfigError("there is no text to look at: give some, --texts FILE.")
    return learn, retain


def _title(options: ProbeOptions) -> str:
    return f"Inside {Path(options.model).name or options.model}"


def _about(study: "Study", options: ProbeOptions) -> dict[str, object]:
    """What was looked at, for the head of the page."""
    expansion = study.model.expansion
    learn, retain = _sources(options)
    tokens = sum(text.ids.shape[1] for text in study.learn)
    facts: dict[str, object] = {
        "model": hidden(options.model),
        "base": hidden(str(study.model.base.config.name_or_path or "not recorded")),
        "expansion": f"{expansion.structure}, {expansion.interpolator}, layers "
        f"{', '.join(map(str, study.model.blocks))}{', and ends' if -1 in study.parts else ''}",
        "dial": "as trained" if expansion.dial is None else str(expansion.dial),
        "texts": f"{hidden(learn.path)}: {len(study.learn)} texts of {tokens:,} tokens in all",
    }
    if retain is not None:
        kept = sum(text.ids.shape[1] for text in study.retain)
        facts["texts to keep"] = (
            f"{hidden(retain.path)}: {len(study.retain)} texts, {kept:,} tokens"
        )
    return facts


def _write(options: ProbeOptions, findings: "dict[str, Finding | str]", page: str) -> None:
    from controlllm.probe import Finding
    from controlllm.probe.board import write_board

    for name, one in findings.items():
        print(f"{name}: {one.result if isinstance(one, Finding) else f'not shown: {one}'}")
    write_text(options.out, page)
    size = len(page.encode()) / 1e6
    print(f"{Path(options.out).resolve()}: {size:.1f} MB; open it in any browser.")
    if options.tensorboard is not None:
        count = write_board(options.tensorboard, findings)
        print(
            f"{options.tensorboard}: scalars by layer and {count} sets of vectors for TensorBoard."
        )
    if options.layers is not None:
        _write_layers(options.layers, findings["blocks"])


def _write_layers(path: str, blocks: "Finding | str") -> None:
    layers = [] if isinstance(blocks, str) else list(blocks.layers)
    if not layers:
        print(f"{path} is not written: no layer is suggested.")
        return
    values = {"expansion": {"num_blocks": None, "layers": layers}}
    write_text(path, LAYERS_BEGIN + yaml.safe_dump(values, sort_keys=False))
    print(f"{path}: train with it by `controlllm train --config run.yaml --config {path}`.")
