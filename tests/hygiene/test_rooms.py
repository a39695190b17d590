"""Every room says what it holds, and what it says is true."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "controlllm"
ROOMS = [path.parent for path in sorted(SOURCE.rglob("__init__.py")) if path.parent != SOURCE]


def children(room: Path) -> set[str]:
    """Public modules and sub-rooms of a room."""
    modules = {path.stem for path in room.glob("*.py")}
    rooms = {path.parent.name for path in room.glob("*/__init__.py")}
    return {name for name in modules | rooms if not name.startswith("_")}


def listed(docstring: str) -> set[str]:
    """Names at the beginning of a line of a list, or in the first cell of a table."""
    names = set(re.findall(r"^([a-z]\w*)  +\S", docstring, re.M))
    for cell in re.findall(r"^\| (`[^|]*) \|", docstring, re.M):
        names |= set(re.findall(r"`(\w+)`", cell))
    return names - {"step", "module", "room"}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(SOURCE)))
def test_a_room_lists_what_it_holds(room: Path) -> None:
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    assert docstring
    there = children(room)
    missing = {name for name in there if not re.search(rf"\b{name}\b", docstring)}
    if room != SOURCE / "cli":  # Its modules are the verbs, which `VERBS` describes.
        assert not missing, f"{room}/__init__.py does not name {sorted(missing)}"
    extra = listed(docstring) - there
    assert not extra, f"{room}/__init__.py names {sorted(extra)}, which are not there"
