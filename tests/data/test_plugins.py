"""Users' own code: from a file, from an installed package, and what is said where it fails."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.processes import Outcome, run_processes, values
from transformers import PreTrainedTokenizerBase

from controlllm.data import DataConfig, SourceConfig, TrainLoader
from controlllm.data.loader.plugins import _load_entry_points, load_plugins

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PLUGIN = '''
"""A format and a source of one idea."""

from controlllm.data import register_format
from controlllm.data.sources import MemoryChunks, register_source


@register_format("shout")
def shout(row):
    return row["said"].upper()


@register_source("counting")
def counting(source, timeout):
    rows = [(f"{source.path} {i}", {"said": f"number {i}"}) for i in range(int(source.path))]
    return MemoryChunks(rows, f"counting {source.path}")
'''


def in_a_process(function: Callable[[], Any], folder: Path) -> Outcome:
    """What a plugin registers, and that it was loaded, stays in that process."""
    outcome: Outcome = run_processes([function], folder / "out")[0]
    return outcome


def load(*plugins: Any) -> Callable[[], None]:
    return lambda: load_plugins(DataConfig(plugins=[str(plugin) for plugin in plugins]))


def texts(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    batches = list(TrainLoader(config, tokenizer, 1, seed=0))
    rows = "".join(tokenizer.batch_decode(b["input_ids"])[0] for b in batches)
    return sorted(part.split("</s>")[0] for part in rows.split("<s>")[1:])


def test_a_file_with_a_format_and_a_source(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    """In this process and in workers; twice named is once loaded."""
    (tmp_path / "mine.py").write_text(PLUGIN)
    config = DataConfig(
        train=[SourceConfig("7", source_type="counting", format="shout", epochs=1)],
        plugins=[str(tmp_path / "mine.py"), str(tmp_path / "." / "mine.py")],
        max_length=64,
        packing=False,
    )

    def run() -> list[list[str]]:
        found = [texts(config, pico_tokenizer)]
        config.num_workers = 1
        return [*found, texts(config, pico_tokenizer)]

    (here,) = values([in_a_process(run, tmp_path)])
    assert here[0] == here[1] == [f"NUMBER {i}" for i in range(7)]


def test_an_installed_package_is_found_by_its_entry_points(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    site = tmp_path / "site"
    (site / "loud_package-1.0.dist-info").mkdir(parents=True)
    (site / "loud_package.py").write_text(PLUGIN)
    (site / "loud_package-1.0.dist-info" / "METADATA").write_text(
        "Name: loud-package\nVersion: 1\n"
    )
    (site / "loud_package-1.0.dist-info" / "entry_points.txt").write_text(
        "[controlllm.formats]\nshout = loud_package\n\n[controlllm.sources]\nc = loud_package\n"
    )
    config = DataConfig([SourceConfig("3", source_type="counting", format="shout", epochs=1)])

    def run() -> list[str]:
        _load_entry_points.cache_clear()  # what tests before this one, in the process forked, found
        sys.path.insert(0, str(site))
        return texts(config, pico_tokenizer)

    assert values([in_a_process(run, tmp_path)]) == [["NUMBER 0", "NUMBER 1", "NUMBER 2"]]

    def broken() -> list[str]:
        (site / "loud_package.py").write_text("raise RuntimeError('no licence')")
        return run()

    error = str(in_a_process(broken, tmp_path).error)
    assert "ConfigError: the plugin 'shout' (loud_package, entry point controlllm.formats)" in error
    assert "no licence" in error and "uninstall" in error


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        (PLUGIN.replace('"shout"', '"text"'), "format='text' is registered already"),
    ],
)
def test_plugins_that_fail_are_named(tmp_path: Path, code: str, words: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(code)
    error = str(in_a_process(load(path), tmp_path).error)
    assert error.startswith("ConfigError: ") and words in error
    assert str(path) in error or "registered already" in error


def test_plugins_that_are_missing_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.py", tmp_path):
        error = str(in_a_process(load(path), tmp_path).error)
        assert f"ConfigError: data.plugins: {path} is not a Python file" in error


def test_a_plugin_that_was_mended_is_loaded(tmp_path: Path) -> None:
    """As in a notebook: the first try fails, the second finds the file as it is now."""
    path = tmp_path / "mine.py"

    def run() -> list[str]:
        from controlllm.data.formats import FORMATS

        path.write_text("raise RuntimeError('first')")
        with pytest.raises(Exception, match="first"):
            load(path)()
        path.write_text(PLUGIN)
        load(path)()
        return FORMATS.names()

    (names,) = values([in_a_process(run, tmp_path)])
    assert "shout" in names


def test_a_plugin_that_was_edited_after_loading_is_refused(tmp_path: Path) -> None:
    """What it made would be kept under the name of what it is now."""
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)

    def run() -> None:
        load(path)()
        load(path)()
        path.write_text(PLUGIN.replace("upper", "lower"))
        load(path)()

    error = str(in_a_process(run, tmp_path).error)
    assert "ConfigError" in error and f"{path} was edited after this process had loaded it" in error


def test_the_same_name_in_two_folders_are_two_plugins(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        code = PLUGIN.replace("shout", f"shout_{name}").replace("counting", f"counting_{name}")
        (tmp_path / name / "mine.py").write_text(code)

    def run() -> list[str]:
        from controlllm.data.formats import FORMATS

        load(tmp_path / "one" / "mine.py", tmp_path / "two" / "mine.py")()
        modules = {FORMATS.get(f"shout_{name}").convert.__module__ for name in ("one", "two")}
        assert len(modules) == 2 and all(name in sys.modules for name in modules)
        return FORMATS.names()

    (names,) = values([in_a_process(run, tmp_path)])
    assert {"shout_one", "shout_two"} <= set(names)
