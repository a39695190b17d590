"""`controlllm inspect`: what a saved model consists of, without loading it."""

from dataclasses import asdict, dataclass
from typing import Any

from controlllm.checkpoint.models.inspection import Inspection, inspect_folder
from controlllm.cli.kit.parsing import parse_options
from controlllm.common.storage.files import require_writable, write_json
from controlllm.common.text.readable import readable
from controlllm.common.text.tables import format_table
from controlllm.expansion.files.records import BASE, BRANCH, FOLD
from controlllm.expansion.method.expansion_config import ExpansionConfig

__all__ = ["InspectOptions", "run"]


@dataclass
class InspectOptions:
    """Show a saved model's expansion: blocks, parameters trained and frozen, alphas, bytes."""

    model: str
    """Run folder, checkpoint, sidecar, full expanded model or plain model folder."""
    output: str | None = None
    """JSON file to write the numbers to."""


def run(argv: list[str]) -> None:
    """Print what the folder holds."""
    options = parse_options(InspectOptions, argv, "inspect", models=False)
    if options.output is not None:
        require_writable(options.output)
    found = inspect_folder(options.model)
    print(readable("\n".join([*_head(found), "", _table(found)])))
    if options.output is not None:
        expansion = found.expansion.to_dict() if found.expansion else None
        values = asdict(found) | {
            "kind": found.kind.value,
            "expansion": expansion,
            "sidecars": {name: one.to_dict() for name, one in found.sidecars.items()},
        }
        write_json(options.output, values)


def _head(found: Inspection) -> list[str]:
    lines = [f"{found.path}: {found.kind.value}"]
    whole = found.expansion is None and "name_or_path" not in found.base
    name = found.base.get("name_or_path") or "not recorded"
    if found.expansion is None and not found.sidecars:
        lines.append(f"architecture: {found.base.get('architecture')}")
    if whole:
        return [*lines, "not expanded"]
    layers = found.base.get("num_hidden_layers")
    base = f"base: {name}" + (f", {layers} layers" if layers else "")
    print_ = found.base.get("fingerprint")
    lines.append(f"{base}, weights {print_}" if print_ else base)
    if found.sidecars:
        return lines + [f"{name}: {_settings(one)}" for name, one in found.sidecars.items()]
    if found.expansion is None:
        return [*lines, "not expanded"]
    if few := found.base.get("quantised"):
        lines.append(f"trained beside this base in {', '.join(few)}; eval and chat take it in full")
    lines += _chain(found)
    if found.bits is not None:
        lines.append(f"trained matrices: differences from the base's, {found.bits} bits a number")
    return [*lines, _settings(found.expansion)]


def _settings(expansion: ExpansionConfig) -> str:
    names = ("structure", "interpolator", "divergence", "divergence_weight")
    shown = [f"{name}: {getattr(expansion, name)}" for name in names]
    shown.append(f"expand_ends: {'yes' if expansion.expand_ends else 'no'}")
    return "  ".join([*shown, f"dial: {_dial(expansion.dial)}"])


def _chain(found: Inspection) -> list[str]:
    """The stages before, the base first; nothing where there are none."""
    if not found.parents:
        return []
    chain = " > ".join([BASE, *(parent["name"] for parent in found.parents), "this"])
    lines = [f"learned after: {chain}"]
    for parent in found.parents:
        where = parent["place"] + ("" if parent["here"] else " (not there)")
        lines.append(
            f"  {parent['name']}: {where}, digest {parent['digest'][:16]}, dial "
            f"{_dial(parent.get('dial'))}, continued by {parent['way']}"
            + (f", its dial here: {_dial(parent['weight'])}" if "weight" in parent else "")
        )
    return [*lines, f"  {_at_zero(found.parents)}"]


def _at_zero(parents: list[dict[str, Any]]) -> str:
    """What the dial turns to at 0, and what of the earlier stages is in force there."""
    ways = [parent["way"] for parent in parents]
    folded = max((number for number, way in enumerate(ways) if way == FOLD), default=-1)
    after = parents[folded + 1 :]
    beside = [str(parent["name"]) for parent in after if parent["way"] == BRANCH]
    if beside:
        stand = "stands" if len(beside) == 1 else "stand"
        return (
            f"{' and '.join(beside)} {stand} beside it, frozen and not in the table: at alpha 0 it "
            f"is the model with {'that' if len(beside) == 1 else 'those'} alone"
        )
    if folded >= 0:
        return f"{parents[folded]['name']} is folded into the base: that is what it is at alpha 0"
    return "the same copies went on: at alpha 0 it is the base"


def _dial(dial: float | dict[int, float] | None) -> str:
    if isinstance(dial, dict):
        return ", ".join(f"{alpha:g} in layer {layer}" for layer, alpha in dial.items())
    return "not turned" if dial is None else f"{dial:g}"


def _table(found: Inspection) -> str:
    headers = ["part", "kind", "trained", "frozen", "alpha", "weights in MB"]
    rows: list[list[object]] = [
        [part.name, part.kind, part.trained, part.frozen, part.alpha, part.bytes / 1e6]
        for part in [*found.parts, found.total]
    ]
    return format_table(headers, rows)
