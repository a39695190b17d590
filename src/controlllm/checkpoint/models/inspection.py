"""What a saved model consists of, read from configs and file headers: no weights are loaded."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from controlllm.checkpoint.models.locate import Kind, locate
from controlllm.checkpoint.training.saved import KINDS, OPTIMIZER_PREFIX, kind_in
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.checksums import verify_checksums
from controlllm.common.storage.tensor_headers import read_header, read_scalars
from controlllm.expansion.files.places import places_of
from controlllm.expansion.files.records import read_model_file, read_sidecar_config
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.plan import ENDS, plan_blocks

__all__ = ["Inspection", "Part", "inspect_folder"]

_EXPANDED = re.compile(r"^(?P<place>.+)\.(?P<branch>expanded|interpolator)\.")
_ADAPTER = re.compile(r"^(base_model\.model\.)?(?P<place>.+?\.\d+)\..*\b(?P<branch>lora|oft)_\w+")
_LOGIT = ".interpolator.logit"
_STATES = ("state.safetensors", "optimizer.safetensors")


@dataclass
class Part:
    """One expanded block, one expanded end, the adapters of one block, or the base.

    Attributes:
        name: the block or module, or "base".
        kind: "concat", "stack", "end", "adapter", "sidecar" (of several) or "base".
        trained: parameters that train.
        frozen: parameters that do not.
        bytes: their size in this folder.
        alpha: weight of the expanded branch; None where it has none, or depends on the token and
            was not measured.
    """

    name: str
    kind: str
    trained: int = 0
    frozen: int = 0
    bytes: int = 0
    alpha: float | None = None


@dataclass
class Inspection:
    """What lies in a folder.

    Attributes:
        kind: the form of the model.
        path: the folder that was looked into.
        expansion: how it is expanded; None for a plain model.
        base: what is recorded of the base.
        parts: its parts; the base comes last, and is absent from a sidecar.
        bits: of a number of the trained matrices, where they are in few (`expansion.files.packed`).
        parents: the stages that it was trained after, the oldest first, as it records them; `here`
            says whether something lies where each would be looked for.
        sidecars: how it is expanded for each of several named sidecars.
    """

    kind: Kind
    path: str
    expansion: ExpansionConfig | None
    base: dict[str, Any]
    parts: list[Part]
    bits: int | None = None
    parents: list[dict[str, Any]] = field(default_factory=list)
    sidecars: dict[str, ExpansionConfig] = field(default_factory=dict)

    @property
    def total(self) -> Part:
        """The sum over all parts."""
        sums = {
            field: sum(getattr(part, field) for part in self.parts)
            for field in ("trained", "frozen", "bytes")
        }
        return Part("total", "", **sums)


def inspect_folder(path: str | Path) -> Inspection:
    """Look into a run folder, a checkpoint, a sidecar, an expanded or a plain model.

    Raises:
        CheckpointError: if it is no folder with a model, or a file cannot be read or is not as its
            checksums say.
    """
    location = locate(path)
    if location.kind is Kind.HUB:
        raise CheckpointError(
            f"{path} is no folder here; if it is on the Hub, fetch it first: hf download {path}"
        )
    folder = Path(location.path)
    verify_checksums(folder, ours=kind_in(folder) is KINDS["control"])
    values = _config(folder)
    packed: dict[str, Any] = values.get("packed", {})
    named = {
        one["name"]: ExpansionConfig.from_dict(one["expansion"])
        for one in values.get("sidecars", [])
    }
    alone = "expansion" in values and not named
    expansion = ExpansionConfig.from_dict(values["expansion"]) if alone else None
    parts = _parts(folder, expansion, values["base"], packed.get("columns", {}))
    if named:
        _share_out(parts)
    parents = [
        {**parent, "here": any(place.is_dir() for place in places_of(parent["place"], folder))}
        for parent in values.get("parents", [])
    ]
    bits = packed.get("bits")
    return Inspection(
        location.kind, str(folder), expansion, values["base"], parts, bits, parents, named
    )


def _share_out(parts: list[Part]) -> None:
    """Of a base with several sidecars: what is theirs is trained, and the base is frozen."""
    for part in parts:
        if part.kind == "base":
            part.trained, part.frozen = 0, part.trained
        else:
            part.kind = "sidecar"


def _config(folder: Path) -> dict[str, Any]:
    """What is noted of `base`, of its `expansion` if it has one, and of what is `packed`."""
    kind = kind_in(folder)
    if kind is KINDS["control"]:
        return read_sidecar_config(folder)
    if kind is not None and kind.base_of is not None:
        return {"base": kind.base_of(folder)}
    values = read_model_file(folder)
    if not {"expansion", "sidecars"} & values.keys():
        return {"base": {"architecture": (values.get("architectures") or [None])[0]}}
    return values


def _parts(
    folder: Path,
    expansion: ExpansionConfig | None,
    base: dict[str, Any],
    columns: Mapping[str, int],
) -> list[Part]:
    plan = plan_blocks(expansion, base["num_hidden_layers"]) if expansion else ()
    kinds = {str(block.layer): block.kind for block in plan}
    parts: dict[str, Part] = {}
    for name, (shape, size) in _tensor_sizes(folder, columns):
        place, branch = _place(name)
        layer = place.rsplit(".", 1)[-1]
        usual = _USUAL.get(branch, "end")
        part = parts.setdefault(place, Part(place, kinds.get(layer, usual)))
        if _trains(name, branch, expansion):
            part.trained += prod(shape)
        else:
            part.frozen += prod(shape)
        part.bytes += size
    if expansion is not None:
        _fill_in_alphas(folder, parts, expansion)
    if "num_parameters" in base and not (folder / "config.json").is_file():
        # The base lies elsewhere; what of it trains in place is in the folder.
        part = parts.setdefault("base", Part("base", "base"))
        part.frozen = base["num_parameters"] - part.trained
    return sorted(parts.values(), key=lambda part: part.kind == "base")


_USUAL = {None: "base", "lora": "adapter", "oft": "adapter"}
"""The kind of a part that is no expanded block, by its branch."""


def _place(name: str) -> tuple[str, str | None]:
    match = _EXPANDED.match(name) or _ADAPTER.match(name)
    return (match["place"].removeprefix("base."), match["branch"]) if match else ("base", None)


def _trains(name: str, branch: str | None, expansion: ExpansionConfig | None) -> bool:
    """Whether a tensor trains: copies do, gates do, a constant alpha only if asked."""
    if expansion is None:
        return True
    if branch is None:
        return len(expansion.frozen_groups) < 4 and _group(name) not in expansion.frozen_groups
    return branch == "expanded" or not name.endswith(".logit") or expansion.train_alpha


def _group(name: str) -> str:
    """Which freezable group of the base a tensor belongs to."""
    if ".layers." in name or re.search(r"\.\d+\.", name):
        return "blocks"
    if "embed" in name or "wte" in name:
        return "embeddings"
    return "norm" if "norm" in name or "ln" in name else "head"


def _fill_in_alphas(folder: Path, parts: dict[str, Part], expansion: ExpansionConfig) -> None:
    constants = {
        _place(name)[0]: 1 / (1 + math.exp(-logit))
        for file in _weight_files(folder)
        for name, logit in read_scalars(file, _LOGIT).items()  # Of several ranks one has it.
    }
    for place, part in parts.items():
        if part.kind in ("base", "adapter"):
            continue
        last = place.rsplit(".", 1)[-1]
        layer = int(last) if part.kind != "end" and last.isdecimal() else None
        part.alpha = _alpha(expansion, part.kind, layer, constants.get(place))


def _alpha(
    expansion: ExpansionConfig, kind: str, layer: int | None, constant: float | None
) -> float | None:
    """The dial, else the constant (1 of a stacked block); of a token gate the dial times its mean.

    A layer of None is an end.
    """
    place = ENDS if layer is None else layer
    dial = expansion.dial.get(place) if isinstance(expansion.dial, dict) else expansion.dial
    if kind == "concat" and constant is None and dial != 0:
        mean = (expansion.mean_alpha or {}).get(place)
        return mean if mean is None or dial is None else dial * mean
    if dial is not None:
        return dial
    return 1.0 if kind == "stack" else constant


def _tensor_sizes(
    folder: Path, columns: Mapping[str, int]
) -> Iterator[tuple[str, tuple[tuple[int, ...], int]]]:
    """Name, shape and bytes of every tensor, from the files' headers (CheckpointError).

    The shape of codes is that of the numbers, `columns` in a row; their scales are no parameters.
    """
    files = _weight_files(folder)
    if not files:
        raise CheckpointError(f"{folder} has no safetensors files.")
    for file in files:
        header = read_header(file)
        for name, shape in header.shapes.items():
            matrix, _, end = name.rpartition(".")
            if matrix in columns and end in ("codes", "scales"):
                shape = (*shape[:-1], columns[matrix]) if end == "codes" else (0,)
            if not name.startswith(OPTIMIZER_PREFIX):
                yield name, (shape, header.sizes[name])


def _weight_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.safetensors") if file.name not in _STATES)
