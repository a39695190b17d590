"""The full form: what `save_pretrained` writes beside the weights, for any process to load."""

import ast
import os
from importlib import resources
from pathlib import Path

from controlllm.common.storage.files import write_text
from controlllm.expansion.files.card import model_card
from controlllm.expansion.method.hf_config import ControlLLMConfig

__all__ = ["complete_folder", "remote_code"]

BUNDLED = (
    "common/errors.py",
    "common/registry.py",
    "common/losses.py",
    "common/tensors.py",
    "common/forwarding.py",
    "common/adapters.py",
    "common/quiet.py",
    "common/packages/bitsandbytes.py",
    "expansion/method/registries.py",
    "expansion/method/divergence.py",
    "expansion/method/interpolators.py",
    "expansion/method/expansion_config.py",
    "expansion/method/plan.py",
    "expansion/method/injection.py",
    "expansion/method/terms.py",
    "expansion/method/state.py",
    "expansion/method/attention_maps.py",
    "expansion/method/relaxed_norm.py",
    "expansion/surgery/anatomy.py",
    "expansion/method/block.py",
    "expansion/method/ends.py",
    "expansion/surgery/quantised.py",
    "expansion/surgery/checks.py",
    "expansion/surgery/parts.py",
    "expansion/surgery/install.py",
    "expansion/method/hf_config.py",
    "expansion/hub/outputs.py",
    "expansion/surgery/dial.py",
    "expansion/hub/modeling.py",
)
"""The modules that the expanded model consists of, each after those that it imports."""


def complete_folder(config: ControlLLMConfig, folder: str | os.PathLike[str]) -> None:
    """Write the modelling file and the model card into a folder of `save_pretrained`."""
    write_text(Path(folder) / "modeling_controlllm.py", remote_code())
    write_text(Path(folder) / "README.md", model_card(config, "full"))


def remote_code() -> str:
    """One self-contained module made of this package's own sources.

    `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` runs it where the package
    is not installed.
    """
    imports: dict[str, None] = {}
    bodies = []
    for name in BUNDLED:
        source = resources.files("controlllm").joinpath(name).read_text(encoding="utf-8")
        bodies.append(_body(source, imports))
    header = '"""Control LLM in one module, written by controlllm."""\n'
    return "\n".join([header, *sorted(imports), "", *bodies])


def _body(source: str, imports: dict[str, None]) -> str:
    """A module without docstring, `__all__` and imports; foreign ones are added to `imports`."""
    lines, kept = source.splitlines(), []
    for index, node in enumerate(ast.parse(source).body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            if not ast.unparse(node).startswith("from controlllm"):
                imports[ast.unparse(node)] = None
            continue
        if index == 0 and isinstance(node, ast.Expr):
            continue
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            continue
        decorators = getattr(node, "decorator_list", [])
        start = min([node.lineno, *(d.lineno for d in decorators)])
        kept.append("\n".join(lines[start - 1 : node.end_lineno]))
    return "\n\n\n".join(kept) + "\n\n"
