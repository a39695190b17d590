"""The house as `house.py` draws it: no circles, and every long file has its reason."""

from tests.hygiene.house import LONG, REASONS, House, circles, picture, summary

HOUSE = House()


def test_no_modules_import_one_another_in_circles():
    assert circles(HOUSE.imports()) == []


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [["b", "c"], ["d", "e"]]


def test_lazy_imports_and_those_for_type_checkers_count(tmp_path):
    package = tmp_path / "src" / "controlllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from controlllm import b\n")
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import controlllm.a\n"
    (package / "b.py").write_text(code)
    assert circles(House(tmp_path).imports()) == [["controlllm.a", "controlllm.b"]]


def test_files_are_short_or_have_a_reason():
    assert REASONS.keys() == HOUSE.long().keys(), f"split what is over {LONG} lines, or say why"


def test_it_is_drawn():
    assert "| `expansion.method` |" in picture(HOUSE)
    assert summary(HOUSE)["circles; modules in them"] == "0; 0"
