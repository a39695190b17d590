"""What documents and comments name exists: modules, functions, files, pages and their sections."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hygiene.test_documents import DOCUMENTS, FENCE, ROOT, code_blocks

from controlllm.data.loader.plugins import ENTRY_POINT_GROUPS

PACKAGE = ROOT / "src" / "controlllm"
SOURCES = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]
QUOTED = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"(?<![\w.])controlllm(?:\.\w+)+")
FILE = re.compile(r"(?:[\w-]+/)+[\w-]+\.(?:py|yaml|sh|json|md)")
PAGE = re.compile(r"\bdocs/[\w/-]+(?:\.md)?")
PRESENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # That names what is gone.
OF_OTHERS = {"scripts/llama_pro.py"}
"""Paths in other projects."""
SECTION = re.compile(r"docs/method\.md,? §(\d+)")


def module_file(name: str) -> Path | None:
    """The file of a module or package, by its dotted name."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((one for one in found if one.is_file()), None)


def defined(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Names that a module or class defines or imports, with where."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((one.asname or one.name, node) for one in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
            yield from ((name.id, node) for name in names)
        elif isinstance(node, ast.If):  # What type checkers see stands for what is lazy.
            yield from defined(node.body)


def exists(dotted: str) -> bool:
    """Whether a dotted name leads to a module, or to something in one."""
    if dotted in ENTRY_POINT_GROUPS:
        return True
    parts = dotted.split(".")
    modules = (n for n in range(len(parts), 0, -1) if module_file(".".join(parts[:n])))
    number = next(modules)
    file = module_file(".".join(parts[:number]))
    assert file is not None
    body = ast.parse(file.read_text()).body
    for place, name in enumerate(parts[number:], start=number + 1):
        node = dict(defined(body)).get(name)
        if node is None:
            return False
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("controlllm."):
            return exists(".".join([str(node.module), name, *parts[place:]]))
        body = node.body if isinstance(node, ast.ClassDef) else []
    return True


def imported(code: str) -> Iterator[str]:
    """Names that a piece of Python imports from the package."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "controlllm":
            yield from (f"{node.module}.{one.name}" for one in node.names)


def test_names_of_the_package_exist():
    wrong = []
    for path in PRESENT:
        text = FENCE.sub("", path.read_text())
        names = [name for quoted in QUOTED.findall(text) for name in DOTTED.findall(quoted)]
        if path.parent.name != "decisions":  # Their blocks hold signatures.
            names += [name for block in code_blocks(path, "python") for name in imported(block)]
        wrong += [(path, name) for name in names if not exists(name)]
    assert wrong == []


def test_files_exist():
    """A path in backticks lies in the repository or in the package."""
    wrong = []
    for path in DOCUMENTS:
        text = FENCE.sub("", path.read_text())
        named = {quoted for quoted in QUOTED.findall(text) if FILE.fullmatch(quoted)} - OF_OTHERS
        roots = (ROOT, ROOT / "src", PACKAGE)
        wrong += [(path, n) for n in named if not any((root / n).exists() for root in roots)]
    assert wrong == []


def test_pages_and_sections_that_are_cited_exist():
    sections = set(re.findall(r"^## (\d+)\.", (ROOT / "docs/method.md").read_text(), re.M))
    wrong = []
    for path in SOURCES:
        text = path.read_text()
        pages = [page for page in PAGE.findall(text) if not any(ROOT.glob(f"{page}*"))]
        wrong += [f"{path.relative_to(ROOT)}: {page}" for page in pages]
        wrong += [f"{path.relative_to(ROOT)}: §{n}" for n in {*SECTION.findall(text)} - sections]
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("controlllm.expansion.method", True),
        ("controlllm.expansion.ExpansionConfig", True),
        ("controlllm.expansion.method.plan.default_layers", True),
        ("controlllm.expansion.method.interpolators.Interpolator.gate", True),
        ("controlllm.expansion.method.interpolators.Interpolator.collapse_alpha", False),
        ("controlllm.train.parallel.World.reshard", True),
        ("controlllm.expansion.interpolators", False),
    ],
)
def test_a_name_is_looked_up(name, there):
    assert exists(name) == there
