import ast
import sys
import types

from controlllm.expansion.hub.full import bundled, remote_code


def imported(node):
    """For each module that an import statement names, whether it is ours."""
    if isinstance(node, ast.Import):
        return [alias.name.startswith("controlllm") for alias in node.names]
    return (
        [(node.module or "").startswith("controlllm")] if isinstance(node, ast.ImportFrom) else []
    )


def test_the_bundle_compiles_and_imports_nothing_of_ours_outside_try():
    tree = ast.parse(remote_code())
    guarded = {
        id(node)
        for attempt in ast.walk(tree)
        if isinstance(attempt, ast.Try)
        for statement in attempt.body
        for node in ast.walk(statement)
    }
    ours = [node for node in ast.walk(tree) if any(imported(node))]
    assert [ast.unparse(node) for node in ours if id(node) not in guarded] == []
    assert ours  # the guarded ones: saving a sidecar, the model card


def test_the_bundle_needs_torch_and_transformers_only():
    tree = ast.parse(remote_code())
    roots = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"torch", "transformers"}


def test_the_bundle_holds_every_module_that_the_model_imports(repository):
    source = repository / "src" / "controlllm"
    names = bundled()
    for name in names:
        tree = ast.parse((source / name).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("controlllm."):
                needed = node.module.removeprefix("controlllm.").replace(".", "/") + ".py"
                assert needed in names
                assert names.index(needed) < names.index(name)


def test_no_two_bundled_modules_define_the_same_name(repository):
    """In one module the later definition would silently replace the earlier."""
    source, seen = repository / "src" / "controlllm", {}
    for name in bundled():
        for node in ast.parse((source / name).read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [
                    t.id for t in node.targets if isinstance(t, ast.Name) and t.id != "__all__"
                ]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for defined in names:
                assert seen.setdefault(defined, name) == name, (defined, seen[defined], name)


def test_the_bundle_runs_as_a_module():
    module = types.ModuleType("controlllm_bundle")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(remote_code(), "bundle.py", "exec"), module.__dict__)
        assert module.ControlLLMForCausalLM.__name__ == "ControlLLMForCausalLM"
        assert module.INTERPOLATORS.names() == [
            "dlerp",
            "dlerpin",
            "lerp",
            "moe",
            "prog",
            "proj",
            "slerp",
        ]
    finally:
        del sys.modules[module.__name__]
