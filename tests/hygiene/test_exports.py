"""What a module says it offers is there, and is described."""

import ast
import importlib
import inspect
import pkgutil

import pytest

import controlllm

MODULES = ["controlllm"] + [
    info.name
    for info in pkgutil.walk_packages(controlllm.__path__, "controlllm.", onerror=lambda _: None)
    if not any(part.startswith("_") for part in info.name.split("."))
]


@pytest.mark.parametrize("name", MODULES)
def test_exported_names_exist_and_are_described(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
    exported = getattr(module, "__all__", [])
    assert len(set(exported)) == len(exported), f"{name}.__all__ names something twice"
    for public in exported:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{name}.{public} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_define_something_have_all(name):
    source = inspect.getsource(importlib.import_module(name))
    defines = any(
        isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        for node in ast.parse(source).body
    )
    if defines:
        assert hasattr(importlib.import_module(name), "__all__"), f"{name} has no __all__"
