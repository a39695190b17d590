"""`controlllm combine`: two expanded models of one base become one."""

from dataclasses import dataclass, field
from typing import Literal

from controlllm.checkpoint import LoadOptions
from controlllm.cli.kit.parsing import parse_options
from controlllm.common.errors import ConfigError
from controlllm.common.storage.files import folder_bytes
from controlllm.evaluate.forgetting.alphas import check_settings

__all__ = ["CombineOptions", "run"]


@dataclass
class CombineOptions:
    """Join two models that were expanded from the same base in the same way."""

    a: str
    """Run folder, checkpoint, sidecar or full expanded model."""
    b: str
    """The other one."""
    folder: str
    """Where to write; absent or empty."""
    weight: float = 0.5
    """What b counts: 0 = only a, 1 = only b."""
    form: Literal["sidecar", "full", "collapsed"] = "sidecar"
    """sidecar or full (expanded blocks blended), or collapsed (both folded into the base)."""
    overwrite: bool = False
    """Replace a folder that holds a saved model."""
    load: LoadOptions = field(default_factory=LoadOptions)
    """How the models are loaded."""

    def __post_init__(self) -> None:
        """Check the weight (ConfigError)."""
        self.load.require_full_copies()
        check_settings("weight", [self.weight])


def run(argv: list[str]) -> None:
    """Load both models, blend them, and write the result."""
    options = parse_options(CombineOptions, argv, "combine")
    from controlllm.checkpoint import export, load_model, require_free
    from controlllm.expansion import combine
    from controlllm.expansion.hub.modeling import ControlLLMForCausalLM

    require_free(options.folder, options.overwrite)
    a, tokenizer = load_model(options.a, options.load)
    b, _ = load_model(options.b, options.load)
    for model, name in ((a, options.a), (b, options.b)):
        if not isinstance(model, ControlLLMForCausalLM):
            raise ConfigError(f"{name} is not expanded; only expanded models can be combined.")
    collapsed = options.form == "collapsed"
    model = combine(a, b, options.weight, "collapsed" if collapsed else "expanded")  # type: ignore[arg-type]
    form = "full" if collapsed else options.form
    folder = export(model, options.folder, form, tokenizer, options.overwrite)
    print(f"{folder}: {options.form} form, {folder_bytes(folder) / 1e6:.1f} MB")
