"""The pages on formats are true: the table holds every format, the example runs as a plugin."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.data import DataConfig, SourceConfig, TrainLoader
from controlllm.data.formats import FORMATS, to_document
from controlllm.data.loader.plugins import _load_entry_points, load_plugins

HUB_ID = re.compile(r"`([\w.-]+/[\w.-]+)`")
NAMES = [name for name in FORMATS.names() if not name.startswith("test_")]
DATA_SETS = [name for name in NAMES if not FORMATS.get(name).columns]


def table_rows(repository: Path) -> dict[str, str]:
    """Format -> its line in one of the page's tables."""
    text = (repository / "docs" / "data-formats.md").read_text("utf-8")
    return {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", text, re.M)}


def test_the_page_lists_every_format(repository: Path) -> None:
    assert set(table_rows(repository)) == set(NAMES)


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_has_its_hub_id_in_the_page(repository: Path, name: str) -> None:
    assert HUB_ID.findall(table_rows(repository)[name])


@pytest.fixture(scope="module")
def example(repository: Path) -> tuple[str, dict[str, Any]]:
    """The plugin and the run file of docs/extending/format.md."""
    text = (repository / "docs" / "extending" / "format.md").read_text("utf-8")
    code = re.search(r"^```python\n(.*?)^```", text, re.M | re.S)
    run = re.search(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    assert code and run
    return code[1], yaml.safe_load(run[1])


TICKETS = [
    {"problem": "It is broken.", "reply": "Here is a new one.", "customer": 1, "state": "closed"},
    {"problem": "Again!", "reply": "Sorry, a third one.", "customer": 1, "state": "closed"},
    {"problem": "No light.", "reply": "Please plug it in.", "customer": 2, "state": "closed"},
    {"problem": "Too loud.", "reply": "We look into it.", "customer": 3, "state": "open"},
    {"problem": "Thanks", "reply": "Welcome", "customer": 4, "state": "closed"},
]


def test_the_example_runs_as_a_plugin_file(
    tmp_path: Path, example: tuple[str, dict[str, Any]], pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    code, run = example
    (tmp_path / "tickets.py").write_text(code, "utf-8")
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TICKETS))
    data = run["data"]
    source = {**data["train"][0], "path": str(tmp_path / "tickets.jsonl")}
    config = DataConfig(
        train=[SourceConfig(**source)],
        replay=[SourceConfig(source["path"], name="old", format="ticket", filter="closed")],
        replay_share=0.5,
        plugins=[str(tmp_path / name) for name in data["plugins"]],
        packing=data["packing"],
        collator=data["collator"],
        cache_dir=str(tmp_path / "cache"),
        max_length=256,
    )
    loader = iter(TrainLoader(config, pico_tokenizer, 1, seed=0))
    learned: set[str] = set()
    replayed: set[str] = set()
    for _ in range(60):
        batch = next(loader)
        text = pico_tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True)
        is_replay = bool((batch["origin"] == 1).any())
        assert bool((batch["labels"] != -100).any()) != is_replay
        (replayed if is_replay else learned).add(text.split("\n")[1])
    # Of the closed tickets with a real reply: the first of each customer, and for replay all.
    assert learned == {"It is broken.", "No light."}
    assert replayed == {"It is broken.", "Again!", "No light."}
    with pytest.raises(DataError, match="'customer' is missing; export"):
        to_document({"problem": "p", "reply": "r"}, format="ticket")


def test_an_installed_package_announces_its_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "announced_formats.py").write_text(
        "from controlllm.data.formats import register_format\n"
        "@register_format('test_announced')\n"
        "def announced(row):\n"
        "    return row['body'].upper()\n"
    )
    info = tmp_path / "announced_formats-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: announced-formats\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[controlllm.formats]\nit = announced_formats\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _load_entry_points.cache_clear()
    try:
        load_plugins(DataConfig())
    finally:
        _load_entry_points.cache_clear()
    assert to_document({"body": "b"}, format="test_announced") == "B"
