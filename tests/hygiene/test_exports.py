"""What a module says it offers is there, and is described."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import controlllm

ENGINES = ("sglang", "vllm")
"""They want environments of their own; modules that subclass theirs are imported there only."""


def modules() -> Iterator[ModuleType]:
    """All of the package that others may import here."""
    yield controlllm
    for info in pkgutil.walk_packages(controlllm.__path__, "controlllm.", onerror=lambda _: None):
        if any(part.startswith("_") for part in info.name.split(".")):
            continue
        try:
            yield importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ENGINES:
                raise


def defines(module: ModuleType) -> bool:
    """Whether a public function or class is defined there."""
    return any(
        isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        for node in ast.parse(inspect.getsource(module)).body
    )


def test_exported_names_exist_and_are_described() -> None:
    wrong = []
    for module in modules():
        exported = getattr(module, "__all__", [])
        if not inspect.getdoc(module):
            wrong.append(f"{module.__name__} has no docstring")
        if len(set(exported)) != len(exported):
            wrong.append(f"{module.__name__}.__all__ names something twice")
        for public in exported:
            thing = getattr(module, public)
            described = (
                inspect.getdoc(thing)
                if inspect.isclass(thing) or inspect.isfunction(thing)
                else "-"
            )
            if not described:
                wrong.append(f"{module.__name__}.{public} has no docstring")
    assert wrong == []


def test_modules_that_define_something_have_all() -> None:
    assert [m.__name__ for m in modules() if defines(m) and not hasattr(m, "__all__")] == []
