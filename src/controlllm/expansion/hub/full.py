"""The full form: what `save_pretrained` writes beside the weights, for any process to load."""

import ast
import os
from importlib import resources
from pathlib import Path

from controlllm.common.storage.files import write_text
from controlllm.expansion.files.card import model_card
from controlllm.expansion.method.hf_config import ControlLLMConfig

__all__ = ["bundled", "complete_folder", "remote_code"]

_ROOTS = ("controlllm.expansion.method.divergence", "controlllm.expansion.hub.sidecars")
"""What is asked for by name (a registry imports the first), and not by another module."""


_TOLD = ("structure", "interpolator", "num_blocks", "layers", "expand_ends", "dial")
"""What the card says of each of several sidecars."""


def complete_folder(config: ControlLLMConfig, folder: str | os.PathLike[str]) -> None:
    """Write the modelling file and the model card into a folder of `save_pretrained`."""
    write_text(Path(folder) / "modeling_controlllm.py", remote_code())
    rows = [
        (one["name"], {k: v for k, v in one["expansion"].items() if k in _TOLD and v is not None})
        for one in getattr(config, "sidecars", ())
    ]
    card = model_card(config, "sidecars" if rows else "full", dict(rows))
    write_text(Path(folder) / "README.md", card)


def remote_code() -> str:
    """One self-contained module made of this package's own sources.

    `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` runs it where the package
    is not installed.
    """
    imports: dict[str, None] = {}
    bodies = [_body(_source(name), imports) for name in bundled()]
    header = '"""Control LLM in one module, written by controlllm."""\n'
    return "\n".join([header, *sorted(imports), "", *bodies])


def bundled() -> list[str]:
    """The files that the expanded model consists of, each after those that it imports."""
    found: dict[str, None] = {}

    def add(module: str) -> None:
        name = f"{module.removeprefix('controlllm.').replace('.', '/')}.py"
        if name in found:
            return
        for node in ast.parse(_source(name)).body:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("controlllm."):
                add(str(node.module))
        found[name] = None

    for root in _ROOTS:
        add(root)
    return list(found)


def _source(name: str) -> str:
    return resources.files("controlllm").joinpath(name).read_text(encoding="utf-8")


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
