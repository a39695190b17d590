"""The picture of the house: rooms, layers, circles, long files, and the settings that rooms read.

    python tests/hygiene/house.py                  # this checkout
    python tests/hygiene/house.py BEFORE           # another one
    python tests/hygiene/house.py BEFORE AFTER     # both, side by side

Imports are read from the syntax, so lazy imports and those for type checkers count. A setting is a
field of a class called `...Config`; a room reads it where it names it as an attribute of anything.
"""

import ast
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONG = 300
"""Lines beyond which a file needs a reason."""
REASONS: dict[str, str] = {
    "data/loader/stream.py": "one class: what a lane draws, and the state to go on from",
    "data/loader/train_loader.py": "one class: the face of all lanes, and their state",
    "evaluate/statistics.py": "one table of questions, each a pure function with its source",
    "expansion/hub/modeling.py": "one class, whose interface is that of transformers",
}
"""Why a file is longer, by its path in the package."""


class House:
    """The package of a checkout, read once."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root, self.source = root, root / "src" / "controlllm"
        self.files = {
            ".".join(path.relative_to(root / "src").with_suffix("").parts): path
            for path in sorted(self.source.rglob("*.py"))
        }
        self.files = {name.removesuffix(".__init__"): path for name, path in self.files.items()}
        self.lines = {name: len(path.read_text().splitlines()) for name, path in self.files.items()}
        self.nodes = {name: [*ast.walk(ast.parse(p.read_text()))] for name, p in self.files.items()}
        self.rooms: dict[str, list[str]] = {}
        for name, path in self.files.items():
            parts = path.parent.relative_to(self.source).parts[:2]
            self.rooms.setdefault(".".join(parts) or "(face)", []).append(name)
        self.read = self._settings()

    def imports(self) -> dict[str, set[str]]:
        """The modules that each module imports."""
        graph: dict[str, set[str]] = {name: set() for name in self.files}
        for name, nodes in self.nodes.items():
            for node in nodes:
                if isinstance(node, ast.Import):
                    graph[name] |= {one.name for one in node.names} & self.files.keys()
                elif isinstance(node, ast.ImportFrom) and node.module in self.files:
                    inside = {f"{node.module}.{one.name}" for one in node.names}
                    names = inside & self.files.keys()
                    graph[name] |= names if names == inside else {*names, node.module}
        return {name: found - {name} for name, found in graph.items()}

    def layers(self) -> dict[str, list[str]]:
        """The layers of each room that import-linter holds, upper ones first."""
        linter = tomllib.loads((self.root / "pyproject.toml").read_text())["tool"]["importlinter"]
        held = [one for one in linter["contracts"] if one["type"] == "layers"]
        return {room: one["layers"] for one in held for room in one.get("containers", ["-"])}

    def long(self) -> dict[str, int]:
        """Files over the limit by their path in the package, longest first."""
        over = sorted((-n, self.files[name]) for name, n in self.lines.items() if n > LONG)
        return {path.relative_to(self.source).as_posix(): -n for n, path in over}

    def _settings(self) -> dict[str, set[str]]:
        """The settings that each module reads."""
        every = [node for nodes in self.nodes.values() for node in nodes]
        configs = [n for n in every if isinstance(n, ast.ClassDef) and n.name.endswith("Config")]
        lines = [line for config in configs for line in config.body]
        self.settings = {ast.unparse(n.target) for n in lines if isinstance(n, ast.AnnAssign)}
        return {
            name: {n.attr for n in nodes if isinstance(n, ast.Attribute)} & self.settings
            for name, nodes in self.nodes.items()
        }

    def read_in(self, room: str) -> set[str]:
        """The settings that a room reads."""
        return set().union(*(self.read[name] for name in self.rooms[room]))


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of two nodes or more: those that reach one another."""

    def reached(start: str) -> set[str]:
        seen, waiting = set[str](), [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reach = {node: reached(node) for node in graph}
    knots = {frozenset(o for o in reach[n] if n in reach[o]) for n in graph if n in reach[n]}
    return sorted(sorted(knot) for knot in knots)


def picture(house: House) -> str:
    """Everything about one checkout, as Markdown."""
    lines = ["| room | files | lines | settings read |", "|---|---:|---:|---:|"]
    for room, names in sorted(house.rooms.items()):
        total = sum(house.lines[name] for name in names)
        lines.append(f"| `{room}` | {len(names)} | {total:,} | {len(house.read_in(room))} |")
    lines += ["", "Layers, imports go to the right:", ""]
    lines += [f"* `{room}`: {' > '.join(layers)}" for room, layers in house.layers().items()]
    knots, long = circles(house.imports()), house.long()
    lines += ["", f"Circles: {len(knots)}", "", *(f"* {' '.join(knot)}" for knot in knots)]
    lines += [f"Files over {LONG} lines: {len(long)}", ""]
    lines += [f"* `{path}`, {n}: {REASONS.get(path, 'no reason')}" for path, n in long.items()]
    return "\n".join(lines)


def summary(house: House) -> dict[str, str]:
    """The numbers of one checkout that are worth comparing."""
    fullest = max(house.rooms, key=lambda room: len(house.rooms[room]))
    reader = max(house.rooms, key=lambda room: len(house.read_in(room)))
    knots, long, layers = circles(house.imports()), house.long(), house.layers()
    readers = sum(map(len, house.read.values())) / len(house.settings)
    return {
        "files": f"{len(house.files)}",
        "lines": f"{sum(house.lines.values()):,}",
        "rooms and sub-rooms": f"{len(house.rooms)}",
        "most files in one of them": f"{len(house.rooms[fullest])} (`{fullest}`)",
        "lists of layers that import-linter holds": f"{len(layers)}",
        "circles; modules in them": f"{len(knots)}; {sum(map(len, knots))}",
        f"files over {LONG} lines; without a reason": f"{len(long)}; {len(long.keys() - REASONS)}",
        "most settings read in one room": f"{len(house.read_in(reader))} (`{reader}`)",
        "modules that read a setting, on average": f"{readers:.1f}",
    }


def main(paths: list[str]) -> None:
    """Print one picture, or the numbers of two checkouts side by side."""
    houses = [House(Path(path).resolve()) for path in paths] or [House()]
    if len(houses) == 1:
        print(picture(houses[0]))
        return
    before, after = map(summary, houses)
    rows = [f"| {key} | {before[key]} | {after[key]} |" for key in before]
    print("\n".join(["| | before | after |", "|---|---:|---:|", *rows]))


if __name__ == "__main__":
    main(sys.argv[1:])
