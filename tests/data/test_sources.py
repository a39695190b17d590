"""Every kind of file gives its rows; whatever is broken is named by file and line."""

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from controlllm.common.errors import DataError
from controlllm.data import SourceConfig
from controlllm.data.sources import read_rows

ROWS = [{"text": "one"}, {"text": "twö 二"}, {"text": "three, with\nbreak"}]


def rows_of(path: Path | str, **settings: Any) -> list[Any]:
    return [row for _, row in read_rows(SourceConfig(str(path), **settings))]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def write_zst(path: Path) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(jsonl(ROWS))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda path: path.write_bytes(jsonl(ROWS)),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + jsonl(ROWS)),
    "windows.jsonl": lambda path: path.write_bytes(jsonl(ROWS).replace(b"}\n", b"}\r\n\r\n")),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(jsonl(ROWS))),
    "a.jsonl.zst": write_zst,
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "a.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "nested.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "lines.json": lambda path: path.write_bytes(jsonl(ROWS)),
    "a.parquet": write_parquet,
    "a.csv": lambda path: path.write_text('text\none\ntwö 二\n"three, with\nbreak"\n'),
    "a.tsv": lambda path: path.write_text('text\none\ntwö 二\n"three, with\nbreak"\n'),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_type_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert rows_of(tmp_path / name) == ROWS
    assert rows_of(tmp_path / name, max_rows=2) == ROWS[:2]
    assert rows_of(tmp_path) == ROWS
    assert rows_of(tmp_path / "*") == ROWS


def test_text_by_file_paragraph_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"\r\none\r\ntwo\r\n \r\n\r\n  three\r\n")
    assert rows_of(path) == [{"text": "\none\ntwo\n \n\n  three\n"}]
    assert rows_of(path, text_unit="paragraph") == [{"text": "one\ntwo"}, {"text": "  three"}]
    assert [place for place, _ in read_rows(SourceConfig(str(path), text_unit="line"))] == [
        f"{path}:{line}" for line in (2, 3, 6)
    ]


def test_globs_and_folders_are_sorted_and_deep(tmp_path: Path) -> None:
    for name in ("b.jsonl", "sub/a.jsonl", ".hidden/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl([{"text": name}]))
    (tmp_path / "LICENSE").write_text("free")
    assert rows_of(tmp_path) == [{"text": "b.jsonl"}, {"text": "sub/a.jsonl"}]
    assert rows_of(f"{tmp_path}/**/*.jsonl") == rows_of(tmp_path)


def test_a_folder_of_several_types_asks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "README.md").write_text("a data set")
    with pytest.raises(DataError, match=r"\['jsonl', 'text'\]"):
        rows_of(tmp_path)
    assert rows_of(tmp_path, file_type="jsonl") == ROWS


def test_code_files_by_file_type(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print()\n")
    with pytest.raises(DataError, match="set `file_type`"):
        rows_of(tmp_path / "a.py")
    assert rows_of(f"{tmp_path}/*.py", file_type="text") == [{"text": "print()\n"}]


def test_saved_datasets_and_their_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "two")
    assert rows_of(tmp_path / "one") == ROWS
    assert rows_of(tmp_path / "two", split="test") == ROWS[1:2]
    with pytest.raises(DataError, match=r"no split 'dev'; it has \['test', 'train'\]"):
        rows_of(tmp_path / "two", split="dev")


def test_a_hub_name_that_cannot_be_loaded() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="as a Hub name it cannot be loaded"):
        rows_of("nobody-at-all/no-such-data")


@pytest.mark.parametrize("path", ["none.jsonl", "a/b/c", "/no/where", "no/*.txt", "./none"])
def test_missing_files(path: str) -> None:
    with pytest.raises(DataError, match=r"does not exist|no file matches"):
        rows_of(path)


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.jsonl": (b"", "empty.jsonl is empty"),
    "blank.jsonl": (b"\n \n", "holds no rows"),
    "empty.json": (b"[]", "holds no rows"),
    "header.csv": (b"text\n", "holds no rows"),
    "cut.json": (b'[{"text": "a"}', r"cut.json: not valid JSON .*column"),
    "number.json": (b"17", "number.json: a list of rows is expected, not int"),
    "latin.txt": ("caf\u00e9".encode("latin-1"), "latin.txt: not valid UTF-8 .* byte 3"),
    "cut.jsonl.gz": (gzip.compress(jsonl(ROWS * 500))[:-20], r"cut.jsonl.gz cannot be read"),
    "not.jsonl.gz": (jsonl(ROWS), "not.jsonl.gz cannot be read"),
    "not.jsonl.zst": (jsonl(ROWS), "not.jsonl.zst cannot be read"),
    "not.parquet": (b"PAR1 no PAR1", "not.parquet: broken Parquet after row 0"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name)


BROKEN_ROWS: dict[str, tuple[bytes, int, str]] = {
    "a.jsonl": (b'{"text": "a"}\n{"text": \n{"text": "c"}\n', 2, "not valid JSON"),
    "b.jsonl": (b'{"text": "a"}\n["a"]\n{"text": "c"}\n', 2, "this is a list"),
    "c.jsonl": (b'{"text": "a"}\n{"text": "\xff"}\n{"text": "c"}\n', 2, "not valid UTF-8"),
    "d.jsonl": (b'{"text": "a"}\n' + b"[" * 10**5 + b"\n" + b'{"text": "c"}', 2, "too deeply"),
    "e.csv": (b"text,more\na,b\nc\nd,e\n", 3, "not as many fields"),
    "f.csv": (b"text,more\na,b\nc,d,e\nd,e\n", 3, "not as many fields"),
}


@pytest.mark.parametrize("name", BROKEN_ROWS)
def test_broken_rows_do_not_hide_the_rows_behind_them(tmp_path: Path, name: str) -> None:
    content, line, message = BROKEN_ROWS[name]
    (tmp_path / name).write_bytes(content)
    located = list(read_rows(SourceConfig(str(tmp_path / name))))
    assert [isinstance(row, DataError) for _, row in located] == [False, True, False]
    assert located[1][0] == f"{tmp_path / name}:{line}"
    assert message in str(located[1][1])


def test_a_parquet_file_cut_in_half(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="broken Parquet"):
        rows_of(path)


def test_local_files_need_no_datasets_package(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from controlllm.data import SourceConfig\n"
        "from controlllm.data.sources import read_rows\n"
        f"assert len(list(read_rows(SourceConfig({str(tmp_path / 'a.jsonl')!r})))) == 3\n"
        "try: list(read_rows(SourceConfig('some/data')))\n"
        "except Exception as error: assert 'pip install datasets' in str(error), error\n"
    )
    import os
    import sys

    environment = {**os.environ, "PYTHONPATH": str(repository / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
