"""`controlllm export`: take a trained model away."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from controlllm.checkpoint import FORMS, LoadOptions, list_checkpoints, make_form, rules_of_forms
from controlllm.checkpoint.models.export.forms import OUTTYPE, RANK
from controlllm.cli.kit.parsing import parse_options
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.settings import check_said
from controlllm.common.storage.files import folder_bytes
from controlllm.common.text.progress import stage
from controlllm.evaluate.forgetting.alphas import check_settings
from controlllm.expansion.files.records import SIDECAR_CONFIG

__all__ = ["ExportOptions", "run"]


@dataclass
class ExportOptions:
    """Write a model in the form that some tool reads, with all that is needed to use it."""

    model: str
    """Run folder, checkpoint, sidecar, model folder or Hub name."""
    folder: str
    """Where to write; absent or empty."""
    form: str = setting("full", choices=FORMS.names)
    """full (loads anywhere; adapters merged), sidecar (trained tensors only), adapter (those of a
    base with adapters, for PEFT), unrolled (a stack as the plain, deeper architecture: exact),
    collapsed (the plain architecture: an approximation), gguf (unrolled or collapsed, for
    llama.cpp and Ollama), lora (the collapsed difference in low rank, for PEFT, vLLM and
    llama.cpp). See docs/exports.md."""
    alpha: float | None = None
    """Alpha to write into it, or to collapse at; null = as it was saved."""
    bits: int | None = None
    """Of the form sidecar: 1, 2 or 4 bits a number, as differences from the base; null = whole."""
    outtype: str = OUTTYPE
    """Of the form gguf: numbers in the file; auto = 16 bits, in the kind of the model."""
    rank: int = RANK
    """Of the form lora: rank of each matrix."""
    texts: str | None = None
    """Of the form lora: a text file to measure on how far it is from the trained model."""
    sidecars: dict[str, str] = field(default_factory=dict)
    """Several sidecars on the base that MODEL is, in one folder (form full): --sidecars.maths
    FOLDER --sidecars.zh FOLDER."""
    all_checkpoints: bool = False
    """Write every whole checkpoint of a run, each into `folder/checkpoint-N`; those that are there
    already are left as they are, unless `overwrite`."""
    overwrite: bool = False
    """Replace a folder that holds a saved model."""
    load: LoadOptions = field(default_factory=LoadOptions)
    """How the model is loaded."""

    def __post_init__(self) -> None:
        """Check the values, and that the form reads its options (ConfigError)."""
        self.load.require_full_copies()
        check_settings("alpha", [self.alpha])
        check_values(self, "")
        ours = {one.name for one in fields(self)}  # forms of users' own may have other options
        check_said(self, (rule for rule in rules_of_forms() if rule.field in ours))
        make_form(self.form, vars(self))  # checks its options


def run(argv: list[str]) -> None:
    """Load the model and write the form that is asked for."""
    options = parse_options(ExportOptions, argv, "export")
    if options.all_checkpoints:
        _export_all(options)
    else:
        _export(options)


def _export_all(options: ExportOptions) -> None:
    checkpoints = list_checkpoints(options.model)
    if not checkpoints:
        raise CheckpointError(f"{options.model} is no run folder with checkpoints.")
    for checkpoint in checkpoints:
        folder = Path(options.folder) / checkpoint.name
        if folder.exists() and not options.overwrite:
            print(f"{folder}: is there already")
            continue
        _export(replace(options, model=str(checkpoint), folder=str(folder)))


def _export(options: ExportOptions) -> None:
    from controlllm.checkpoint import export, load_named, require_free
    from controlllm.expansion import ControlLLMForCausalLM
    from controlllm.expansion.hub.sidecars import SidecarsForCausalLM

    require_free(options.folder, options.overwrite)
    calibrated = Path(options.model) / "calibrated"
    if options.alpha is None and (calibrated / SIDECAR_CONFIG).is_file():
        print(f"the alpha that `calibrate` has chosen is not in the run: {calibrated} has it")
    with stage(f"loading {options.model}"):
        model, tokenizer, _ = load_named(options.model, options.sidecars, options.load)
    if options.alpha is not None:
        if not isinstance(model, ControlLLMForCausalLM):
            raise ConfigError(f"alpha needs an expanded model; {type(model).__name__} is none.")
        if isinstance(model, SidecarsForCausalLM) and len(model.sidecars) > 1:
            raise ConfigError(
                f"alpha={options.alpha} does not say which sidecar is meant "
                f"({', '.join(model.sidecars)}), and each is written with the dial that it was "
                "saved with: leave it out. `controlllm calibrate --sidecars.NAME` finds them."
            )
        model.set_alpha(options.alpha)
    form = make_form(options.form, vars(options))
    folder = export(model, options.folder, form, tokenizer, options.overwrite, inplace=True)
    for line in form.told:
        print(line)
    print(f"{folder}: {options.form} form, {folder_bytes(folder) / 1e6:.1f} MB")
