"""Every room says what it holds, and what it says is true."""

import ast
import re
from pathlib import Path

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


def test_a_room_lists_what_it_holds() -> None:
    wrong = []
    for room in ROOMS:
        docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
        there = children(room)
        missing = {name for name in there if not re.search(rf"\b{name}\b", docstring)}
        if (
            missing and room != SOURCE / "cli"
        ):  # Its modules are the verbs, which `VERBS` describes.
            wrong.append(f"{room}/__init__.py does not name {sorted(missing)}")
        if extra := listed(docstring) - there:
            wrong.append(f"{room}/__init__.py names {sorted(extra)}, which are not there")
    assert wrong == []
