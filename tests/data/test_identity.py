"""Keys of caches: whatever could change a row changes them, and nothing else has to."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.processes import run_processes, values
from tokenizers import AddedToken, normalizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from controlllm.data import DataConfig, SourceConfig, StageConfig, register_postprocess
from controlllm.data.cache.cache_key import model_key
from controlllm.data.cache.prepare import prepare_source, prepared_store, store_folder
from controlllm.data.cache.store import TokenStore
from controlllm.data.examples.encode import RowEncoder
from controlllm.data.examples.row_filters import register_filter
from controlllm.data.loader.plugins import load_plugins
from controlllm.data.sources import open_chunks

OF_SOURCES: dict[str, Any] = {
    # Another value makes other rows or examples, or might.
    "format": "text",
    "columns": {"text": "body"},
    "file_type": "jsonl",
    "source_type": "files",
    "text_unit": "line",
    "max_rows": 3,
    "max_row_bytes": 50,
    "part": "train",
    "held_out": 0.5,
    "group_by": "body",
    "where": {"body": ["b"]},
    "filter": "test_identity.some",
    "deduplicate": True,
    "sample": 0.5,
    "sample_rows": 2,
    "difficulty": "length",
    "phases": 2,
    "postprocess": "test_identity.same",
    "on_bad_row": "skip",
    "numbers_as_text": True,
    "storage_options": {"user": "me"},
}
NEVER_OF_SOURCES: dict[str, Any] = {
    # Reviewed: cannot change a row by itself.
    "name": "other",  # what metrics call it
    "weight": 2.0,  # how often it is drawn
    "epochs": 2.0,  # how long it stays
    "streaming": True,  # how a Hub data set travels; told by what is opened
    "subset": "main",  # } told by the identity of what is opened:
    "split": "test",  # } see test_splits_of_a_saved_data_set
    "revision": "main",  # }
}
OF_CONFIGS: dict[str, Any] = {
    "max_length": 20,
    "chat_template": "alpaca",
    "train_on": ["assistant", "user"],
    "mixed_training": True,
    "long_text": "drop",
    "long_chat": "drop",
    "piece_bos": False,
    "special_tokens_in_text": True,
}
NEVER_OF_CONFIGS: dict[str, Any] = {
    # Reviewed: order, mixing, batches, processes, places. Plugins count by the code that they hold.
    "train": [],
    "replay": [SourceConfig("old")],
    "replay_share": 0.0,
    "learn": [],
    "retain": [],
    "mix_by": "rows",
    "packing": False,
    "packing_strategy": "concat",
    "packing_lookahead": 3,
    "group_by_length": False,
    "max_tokens_per_batch": None,
    "collator": "padded",
    "temperature": 2.0,
    "stages": [StageConfig(5, {"rows": 1.0})],
    "shuffle": False,
    "shuffle_buffer": 3,
    "num_workers": 2,
    "prefetch_factor": 2,
    "lanes": 2,
    "cache_dir": "elsewhere",
    "timeout": 5.0,
    "cache_timeout": 5.0,
    "plugins": [],
    "max_eval_samples": 3,
    "max_eval_tokens": 100,
}


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    register_filter("test_identity.some")(lambda row: row["text"] != "a")
    register_postprocess("test_identity.same")(lambda rows, context: rows)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = ["a", "b", "b", "c" * 30]
    path.write_text("".join(json.dumps({"text": t, "body": f"{t}!"}) + "\n" for t in texts))
    return path


Key = Callable[..., str]

COMPANY: dict[str, dict[str, Any]] = {
    "held_out": {"part": "train"},
    "group_by": {"part": "train"},
    "phases": {"difficulty": "length"},
}
CONFIG_COMPANY: dict[str, dict[str, Any]] = {
    "replay": {"replay_share": 0.1},
    "temperature": {"train": [SourceConfig("rows"), SourceConfig("more")]},
    "stages": {"train": [SourceConfig("rows"), SourceConfig("more")]},
    "packing_strategy": {"packing": True},
    "prefetch_factor": {"num_workers": 1},
}
NOT_OF_LINES: dict[str, Any] = {
    "text_unit": "file",
    "subset": None,
    "split": "train",
    "revision": None,
    "streaming": False,
    "storage_options": {},
}


@pytest.fixture
def key(rows: Path, tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase) -> Key:
    """`key(source={...}, config={...})`: of the source of four rows, with these fields changed."""

    def make(
        source: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: PreTrainedTokenizerBase = pico_tokenizer,
        path: Path = rows,
        model: Any = None,
    ) -> str:
        of_rows = SourceConfig(**{"path": str(path), **(source or {})})
        whole = DataConfig(**{"train": [of_rows], **(config or {})})
        encoder = RowEncoder(of_rows, tokenizer, whole, training=True)
        # Openers refuse fields that they do not read; these are looked at all the same.
        plain = replace(of_rows, **NOT_OF_LINES) if path.is_file() else of_rows
        return store_folder(encoder, open_chunks(plain), model).name.rpartition("-")[2]

    return make


def test_every_field_was_thought_about() -> None:
    """A new field fails here until somebody decides whether it can change rows."""
    for config, changing, never in (
        (SourceConfig, OF_SOURCES, NEVER_OF_SOURCES),
        (DataConfig, OF_CONFIGS, NEVER_OF_CONFIGS),
    ):
        known = {field.name for field in fields(config)} - {"path"}
        assert known == changing.keys() | never.keys()
        assert not changing.keys() & never.keys()


@pytest.mark.parametrize("name", OF_SOURCES)
def test_fields_of_a_source_that_change_rows_change_the_key(key: Key, name: str) -> None:
    # Some do nothing without another, and are refused alone.
    company = COMPANY.get(name, {})
    assert key({**company, name: OF_SOURCES[name]}) != key(company)


@pytest.mark.parametrize("name", OF_CONFIGS)
def test_fields_of_the_config_that_change_rows_change_the_key(key: Key, name: str) -> None:
    assert key(config={name: OF_CONFIGS[name]}) != key()


def test_other_fields_keep_the_key(key: Key) -> None:
    for name, value in NEVER_OF_SOURCES.items():
        assert key({name: value}) == key(), name
    for name, value in NEVER_OF_CONFIGS.items():
        assert key(config={name: value, **CONFIG_COMPANY.get(name, {})}) == key(), name


def test_splits_of_a_saved_data_set(tmp_path: Path, key: Key) -> None:
    """Fields that are not in the key by name are told by what they open."""
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    keys = {key({"split": split}, path=tmp_path / "saved") for split in ("train", "test")}
    assert len(keys) == 2


def test_bytes_and_times_of_files(key: Key, rows: Path) -> None:
    before = key()
    assert key() == before
    status = rows.stat()
    os.utime(rows, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    touched = key()
    assert touched != before
    rows.write_bytes(rows.read_bytes().replace(b"a", b"z", 1))
    os.utime(rows, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if it had not been touched
    assert key() not in (before, touched)


def test_the_content_of_a_tokenizer(
    key: Key, pico_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    def changed(change: Callable[[Any], Any]) -> str:
        tokenizer = copy.deepcopy(pico_tokenizer)
        assert key(tokenizer=tokenizer) == key()
        return key(tokenizer=change(tokenizer) or tokenizer)

    def reload(tokenizer: Any) -> Any:
        """The same name, from disk, where one letter was given another id."""
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        file = tmp_path / "tokenizer" / "tokenizer.json"
        content = json.loads(file.read_text())
        ids = content["model"]["vocab"]
        ids["a"], ids["b"] = ids["b"], ids["a"]
        file.write_text(json.dumps(content))
        return PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer")

    def small_letters(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()

    def no_bos(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")

    keys = [
        key(),
        changed(lambda t: t.add_tokens(["ab"]) and None),
        changed(lambda t: t.add_tokens([AddedToken("ab", lstrip=True)]) and None),
        changed(lambda t: setattr(t, "eos_token", "<pad>")),
        changed(lambda t: setattr(t, "chat_template", "{{ messages[0].content }}")),
        changed(small_letters),
        changed(no_bos),
        changed(reload),
    ]
    assert len(set(keys)) == len(keys)
    pico_tokenizer("text", truncation=True, max_length=3, padding="max_length")
    assert key() == keys[0]  # what a call switches on is no content


def test_the_content_of_a_model(key: Key, pico_llama: Any) -> None:
    @register_postprocess("test_identity.model", uses_model=True)
    def hook(rows: Iterator[Any], context: Any) -> Iterator[Any]:
        yield from rows

    model = pico_llama()
    source = {"postprocess": "test_identity.model"}
    before = key(source, model=model)
    assert before == key(source, model=pico_llama())
    assert before != key(source) != key(source, model=pico_llama(seed=1))
    with torch.no_grad():
        weight = model.model.layers[2].mlp.up_proj.weight
        weight[17, 5] = torch.nextafter(weight[17, 5], torch.tensor(9.0))
    assert key(source, model=model) != before  # one bit of one weight
    assert key(model=model) == key()  # of no interest to other sources
    assert model_key(pico_llama().bfloat16()) != model_key(pico_llama())


HEAD = """
from controlllm.data import register_filter, register_format, register_postprocess
from controlllm.data.sources import register_reader, register_source
from {helper} import WORD
"""
PARTS = {
    "format": """
@register_format("test_plugin")
def convert(row):
    return WORD + row["text"]
""",
    "filter": """
@register_filter("test_plugin")
def keep(row):
    return WORD + row["text"] != WORD + "b"
""",
    "postprocess": """
@register_postprocess("test_plugin")
def hook(rows, context):
    for row in rows:
        yield {"text": WORD + row["text"]}
""",
    "file_type": """
@register_reader("test_plugin", ".plug")
def read(file, source):
    with file.open() as opened:
        for number, line in enumerate(opened):
            yield f"{file}:{number}", {"text": WORD + line.decode().strip()}
""",
    "source_type": """
from controlllm.data.sources import MemoryChunks

@register_source("test_plugin")
def open_it(source, timeout):
    return MemoryChunks([("0", {"text": WORD + "a"}), ("1", {"text": WORD + "b"})], "the same")
""",
}
PARTS["ending"] = PARTS["file_type"]
PARTS["recognised"] = PARTS["format"].replace('"test_plugin"', '"test_plugin", "zz"')


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("use", PARTS)
def test_code_that_was_edited_makes_another_cache(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase, use: str
) -> None:
    """A plugin, and a module that it imports: each run in a process of its own."""
    helper = f"helper_of_{use}"
    plugin, helping = tmp_path / "plugin.py", tmp_path / f"{helper}.py"
    source_file = tmp_path / ("rows.plug" if use in ("file_type", "ending") else "rows.jsonl")
    source_file.write_text('{"text": "a"}\n{"text": "b"}\n')
    options = {} if use in ("ending", "recognised") else {use: "test_plugin"}
    source = SourceConfig(str(source_file), **options)
    config = DataConfig([source], cache_dir=str(tmp_path / "cache"), plugins=[str(plugin)])

    def run() -> tuple[str, bool, list[str]]:
        import sys

        sys.path.insert(0, str(tmp_path))
        load_plugins(config)
        encoder, chunks = RowEncoder(source, pico_tokenizer, config), open_chunks(source)
        known = prepared_store(encoder, chunks) is not None
        store = prepare_source(encoder, chunks)
        return store_folder(encoder, chunks).name, known, texts_of(store, pico_tokenizer)

    def in_a_process() -> tuple[str, bool, list[str]]:
        (result,) = values(run_processes([run], tmp_path / "outcomes"))
        found: tuple[str, bool, list[str]] = result
        return found

    code = HEAD.format(helper=helper) + PARTS[use]
    helping.write_text("WORD = 'old '\n")
    plugin.write_text(code)
    first, again = in_a_process(), in_a_process()
    assert (first[1], again[1], first[0]) == (False, True, again[0])
    assert again[2] == first[2]
    plugin.write_text(code.replace("WORD + ", "'now ' + ").replace('"b"', '"a"'))
    edited = in_a_process()
    helping.write_text("WORD = 'other '\n")
    other_helper = in_a_process()
    assert not edited[1] and not other_helper[1]
    assert len({first[0], edited[0], other_helper[0]}) == 3
    if use != "recognised":  # The rows have no column `zz`, but others might.
        assert edited[2] != first[2]


def texts_of(store: TokenStore, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [
        tokenizer.decode(store[i].input_ids, skip_special_tokens=True) for i in range(len(store))
    ]


def test_values_that_a_filter_was_made_with_count(key: Key) -> None:
    def longer_than(least: int) -> Callable[[Any], bool]:
        return lambda row: len(row["text"]) > least

    register_filter("test_identity.1")(longer_than(1))
    register_filter("test_identity.2")(longer_than(2))
    for name in ("test_identity.1", "test_identity.2"):
        assert key({"filter": name}) == key({"filter": name})
    # Apart from its name each has the same code.
    from controlllm.data.cache.cache_key import code_key

    one, two = (code_key(SourceConfig("x", filter=f"test_identity.{i}")) for i in (1, 2))
    assert one != two


def test_code_without_a_file_counts_by_what_it_does(key: Key) -> None:
    """As typed into a notebook: another body is other code."""
    from controlllm.data.cache.cache_key import code_key

    keys = []
    for number, body in enumerate(("row['text'] > 'a'", "row['text'] > 'b'", "row['text'] < 'a'")):
        space: dict[str, Any] = {"__name__": "typed"}
        exec(f"def keep(row):\n    return {body}\n", space)
        register_filter(f"test_identity.typed{number}")(space["keep"])
        keys.append(code_key(SourceConfig("x", filter=f"test_identity.typed{number}")))
    assert len(set(keys)) == 3
