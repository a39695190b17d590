"""The examples on the pages about sources do what the pages say."""

import pickle
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlllm.common.errors import ConfigError, DataError
from controlllm.data.config.data_config import DataConfig
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.loader.plugins import load_plugins
from controlllm.data.sources import open_chunks, register_reader, register_source
from controlllm.data.sources.registry import OPENER_FIELDS, known_endings, readers_of


@pytest.fixture(scope="module")
def shop(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's plugin, loaded as a run would."""
    folder = tmp_path_factory.mktemp("shop")
    text = (repository / "docs" / "extending" / "source.md").read_text("utf-8")
    python, config = re.findall(r"```(?:python|yaml)\n(.*?)```", text, re.DOTALL)
    (folder / "shop.py").write_text(python)
    (folder / "run.yaml").write_text(config)
    load_plugins(DataConfig(plugins=[str(folder / "shop.py")]))
    return folder


def _source(shop: Path, number: int) -> SourceConfig:
    options = yaml.safe_load((shop / "run.yaml").read_text())["data"]["train"][number]
    return SourceConfig(**options | {"path": str(shop / options["path"])})


def test_the_reader_of_the_page(shop: Path) -> None:
    (shop / "kitchen").mkdir()
    text = "Tea\nBoil water.\n---\nCaf\xe9\nGrind.\nPour.\n"
    (shop / "kitchen" / "a.recipe").write_text(text, "utf-8")
    (shop / "kitchen" / "b.recipe").write_bytes(b"Caf\xe9\n---\nSoup\nStir.\n")
    located = list(open_chunks(_source(shop, 0)).rows())
    assert located[1] == (
        f"{shop}/kitchen/a.recipe:4",
        {"prompt": "How do I make Caf\xe9?", "completion": "Grind.\nPour.\n"},
    )
    assert isinstance(located[2][1], DataError) and "not valid UTF-8" in str(located[2][1])
    assert located[3][1]["prompt"] == "How do I make Soup?"


def test_the_opener_of_the_page(shop: Path) -> None:
    rows: list[Any] = [(f"question {i}", f"answer {i}") for i in range(2500)]
    with sqlite3.connect(shop / "shop.db") as database:
        database.execute("CREATE TABLE orders (question, answer)")
        database.executemany("INSERT INTO orders VALUES (?, ?)", rows)
    source = _source(shop, 1)
    chunks = pickle.loads(pickle.dumps(open_chunks(source)))
    assert len(chunks) == 3 and chunks.num_rows == 2500
    assert [row["answer"] for _, row in chunks.read(2, 498)] == ["answer 2498", "answer 2499"]
    assert [tuple(row.values()) for _, row in open_chunks(source).rows()] == rows
    source.max_rows = 7
    assert [tuple(row.values()) for _, row in open_chunks(source).rows()] == rows[:7]
    source.subset = "nothing"
    with pytest.raises(DataError, match="table 'nothing' cannot be read"):
        open_chunks(source)


def test_names_and_endings_that_are_taken(shop: Path) -> None:
    with pytest.raises(ConfigError, match="file_type='jsonl' is registered already"):
        register_reader("jsonl")(lambda file, source: iter(()))
    with pytest.raises(ConfigError, match=r"'\.recipe' belongs to file_type='recipe' already"):
        register_reader("meal", ".recipe")(lambda file, source: iter(()))


def test_the_table_of_fields_says_who_reads_each(repository: Path) -> None:
    page = (repository / "docs" / "data-sources.md").read_text("utf-8")
    own = re.compile(r" and `(source|file)_type: (?!hub|saved|text)\w+`")  # What tests register.
    for field in OPENER_FIELDS:
        assert f"| `{field}` | {own.sub('', readers_of(field))} |" in page


def test_a_source_of_ones_own_says_what_it_reads(shop: Path) -> None:
    source = _source(shop, 1)
    source.split = "test"
    words = (
        "split='test' would not be used: only folders .* can use it, and this is `source_type: sq"
    )
    with pytest.raises(ConfigError, match=words):
        open_chunks(source)
    with pytest.raises(ConfigError, match=r"reads='splits' is not known.*Did you mean 'split'"):
        register_source("no source", reads=("splits",))(lambda source, timeout: None)


def test_the_table_of_sources_names_every_ending(repository: Path, shop: Path) -> None:
    page = (repository / "docs" / "data-sources.md").read_text("utf-8")
    missing = [end for end in known_endings() if f"`{end}`" not in page and end != ".recipe"]
    assert not missing
