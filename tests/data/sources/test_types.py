"""Every type of file gives the same rows, small (held in memory) and large (cut into chunks)."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.data.sources.making import ROWS, WRITERS, chunk_rows, flat, many, rows_of, write

from controlllm.common.errors import ConfigError, DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources import MemoryChunks, open_chunks, opening
from controlllm.data.sources.ranges import LEAST_BYTES

TEXTS = [{"text": row["text"], "number": i} for i, row in enumerate(ROWS)]


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No source is small enough to be held in memory."""
    monkeypatch.setattr(opening, "SMALL_BYTES", -1)


def expected(name: str, rows: list[dict]) -> list[dict]:
    """CSV knows texts only."""
    as_text = name.endswith((".csv", ".tsv"))
    return [{k: str(v) if as_text else v for k, v in row.items()} for row in rows]


@pytest.mark.parametrize("name", WRITERS)
def test_every_type_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, TEXTS)
    wanted = expected(name, TEXTS)
    assert isinstance(open_chunks(SourceConfig(str(path)), 60.0), MemoryChunks)
    assert rows_of(path) == wanted
    assert rows_of(path, max_rows=2) == wanted[:2]
    assert rows_of(tmp_path) == wanted
    assert rows_of(tmp_path / "*") == wanted
    assert rows_of(f"file://{path}") == wanted


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("name", WRITERS)
def test_every_type_gives_the_same_rows_chunk_by_chunk(tmp_path: Path, name: str) -> None:
    rows = many(300)
    path = write(tmp_path / name, rows)
    wanted = expected(name, rows)
    chunks = chunk_rows(path)
    assert flat(chunks) == wanted
    assert rows_of(path) == wanted
    assert not isinstance(open_chunks(SourceConfig(str(path)), 60.0), MemoryChunks)


@pytest.mark.usefixtures("all_large")
def test_how_each_type_is_cut(tmp_path: Path) -> None:
    rows = many(300)
    for name in WRITERS:
        write(tmp_path / name, rows)
    cuts = {name: len(chunk_rows(tmp_path / name)) for name in WRITERS}
    assert cuts["a.parquet"] == 5
    assert cuts["file.arrow"] == cuts["stream.arrow"] == 300  # Mapped: chunk = row.
    in_order = ("lz4.feather", "zstd-stream.arrow", "a.csv", "a.json", "a.jsonl.gz")
    assert {cuts[name] for name in in_order} == {1}


def test_a_file_of_several_ranges_is_read_in_order(tmp_path: Path) -> None:
    rows = many(30_000, 150)
    path = write(tmp_path / "a.jsonl", rows)
    chunks = chunk_rows(path)
    assert path.stat().st_size > opening.SMALL_BYTES
    # Files of this machine are cut finely, so that shuffling chunks mixes well.
    assert len(chunks) == -(-path.stat().st_size // LEAST_BYTES) > 100
    assert flat(chunks) == rows
    places = [place for place, _ in open_chunks(SourceConfig(str(path))).rows()]
    assert places == [f"{path}:{line}" for line in range(1, len(rows) + 1)]


def test_json_lines_in_json_files_are_cut_like_json_lines(tmp_path: Path) -> None:
    rows = many(30_000, 150)
    path = write(tmp_path / "lines.json", rows)
    assert len(chunk_rows(path)) > 4
    assert rows_of(path) == rows


def test_text_by_file_paragraph_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"\xef\xbb\xbf\r\none\r\ntwo\r\n \r\n\r\n  three\r\n")
    assert rows_of(path) == [{"text": "\none\ntwo\n \n\n  three\n"}]
    path.write_bytes(b"\r\none\r\ntwo\r\n \r\n\r\n  three\r\n")
    located = list(open_chunks(SourceConfig(str(path), text_unit="paragraph")).rows())
    assert located == [(f"{path}:2", {"text": "one\ntwo"}), (f"{path}:6", {"text": "  three"})]
    located = list(open_chunks(SourceConfig(str(path), text_unit="line")).rows())
    assert [place for place, _ in located] == [f"{path}:{line}" for line in (2, 3, 6)]
    assert [row["text"] for _, row in located] == ["one", "two", "  three"]


def test_each_of_many_text_files_is_a_row(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"text {number}\n" + "x" * 2**20)
    chunks = open_chunks(SourceConfig(str(tmp_path)), 60.0)
    assert chunks.by_row and len(chunks) == 5 and not isinstance(chunks, MemoryChunks)
    assert [next(chunks.read(b))[1]["text"][:6] for b in (3, 0)] == ["text 3", "text 0"]


def test_globs_and_folders_are_sorted_and_deep(tmp_path: Path) -> None:
    names = ("b.jsonl", "sub/a.jsonl", "sub/deep/c.jsonl", ".hidden/c.jsonl", "_temporary/d.jsonl")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\n')
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "_SUCCESS").write_text("")
    wanted = [{"text": name} for name in names[:3]]
    assert rows_of(tmp_path) == wanted
    assert rows_of(f"{tmp_path}/[bs]*/**/*.jsonl") == wanted[1:]
    assert rows_of(f"{tmp_path}/?.jsonl") == wanted[:1]


def test_a_glob_may_match_several_types(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ROWS)
    write(tmp_path / "bom.jsonl", ROWS)
    assert rows_of(tmp_path / "*") == ROWS + ROWS


def test_a_folder_of_several_types_asks(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "README.md").write_text("a data set")
    with pytest.raises(DataError, match=r"\['jsonl', 'text'\].*`file_type`"):
        rows_of(tmp_path)
    assert rows_of(tmp_path, file_type="jsonl") == ROWS


def test_a_folder_without_data_says_what_would_count(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print()")
    with pytest.raises(DataError, match=r"holds no file that ends in .*\.parquet"):
        rows_of(tmp_path)
    with pytest.raises(DataError, match=r"no file of type 'text'"):
        rows_of(tmp_path, file_type="text")


def test_code_files_by_file_type(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print()\n")
    with pytest.raises(DataError, match=r"'\.py' belongs to no file type; set `file_type` to"):
        rows_of(tmp_path / "a.py")
    assert rows_of(f"{tmp_path}/*.py", file_type="text") == [{"text": "print()\n"}]


def test_a_tilde_is_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.jsonl", ROWS)
    for path in ("~/a.jsonl", "~", "~/*.jsonl", "file://~/a.jsonl"):
        assert rows_of(path) == ROWS
    with pytest.raises(DataError, match=r"'~/none\.jsonl' does not exist"):
        rows_of("~/none.jsonl")


@pytest.mark.parametrize("path", ["none.jsonl", "a/b/c", "/no/where", "no/*.txt", "./none"])
def test_missing_files(path: str) -> None:
    with pytest.raises(DataError, match=r"does not exist|no file matches"):
        rows_of(path)


def test_an_unknown_source_type_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'files'"):
        rows_of(write(tmp_path / "a.jsonl", ROWS), source_type="file")


def test_local_files_need_no_optional_package(tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    write(tmp_path / "a.avro", TEXTS)
    code = f"""
import sys
for name in ("datasets", "fastavro", "fsspec"):
    sys.modules[name] = None
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources import open_chunks
def rows(path): return list(open_chunks(SourceConfig(path)).rows())
assert len(rows({str(tmp_path / "a.jsonl")!r})) == 3
for path, hint in (("some/data", "datasets"), ({str(tmp_path / "a.avro")!r}, "fastavro")):
    try: rows(path)
    except Exception as error: assert "pip install " + hint in str(error), error
    else: raise SystemExit(path)
"""
    environment = {"PYTHONPATH": str(repository / "src"), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
