"""Whatever is broken is named: the file, the row, the reason; what can be read around it, is."""

import gzip
import json
import os
import pickle
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.sources.making import ROWS, jsonl, many, rows_of, write, write_avro, write_parquet
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.data import DataConfig, SourceConfig, TrainLoader, read_examples
from controlllm.data.sources import open_chunks, opening
from controlllm.data.sources.finding import find_files, with_types
from controlllm.data.sources.parquet import RowGroupChunks


@pytest.fixture(params=["small", "large"], autouse=True)
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Once as small sources are read, once as large ones."""
    if request.param == "large":
        monkeypatch.setattr(opening, "SMALL_BYTES", -1)
    return str(request.param)


GOOD = jsonl(ROWS * 500)
AVRO_SCHEMA = {"type": "record", "name": "R", "fields": [{"name": "a", "type": "string"}]}

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.jsonl": (b"", "empty.jsonl is empty"),
    "empty.parquet": (b"", "empty.parquet is empty"),
    "empty.arrow": (b"", "empty.arrow is empty"),
    "empty.avro": (b"", "empty.avro is empty"),
    "empty.json": (b"", "empty.json is empty"),
    "cut.json": (b'[{"text": "a"}', r"cut.json: not valid JSON .*at byte 14"),
    "number.json": (b"17", "number.json: a list of rows is expected, not int"),
    "deep.json": (b"[" * 10**6, "deep.json: not valid JSON .the file ends within a value"),
    "cut.jsonl.gz": (gzip.compress(GOOD)[:-20], r"cut.jsonl.gz cannot be read to its end"),
    "flipped.jsonl.gz": (
        gzip.compress(GOOD)[:-8] + b"12345678",
        "flipped.jsonl.gz cannot be read to its end .*CRC",
    ),
    "not.jsonl.gz": (
        GOOD,
        r"not.jsonl.gz cannot be read to its end .*Not a gzipped file \(b'\{\"'\)",
    ),
    "tail.jsonl.gz": (
        gzip.compress(GOOD) + b"tail",
        r"tail.jsonl.gz cannot be read to its end .*Not a gzipped",
    ),
    "not.jsonl.zst": (GOOD, "not.jsonl.zst cannot be read"),
    "cut.jsonl.zst": (pa.compress(GOOD, "zstd", asbytes=True)[:-20], "cut.jsonl.zst cannot be"),
    "not.parquet": (b"PAR1 no PAR1", "not.parquet: broken Parquet"),
    "text.parquet": (GOOD, "text.parquet: broken Parquet"),
    "not.arrow": (GOOD, "not.arrow cannot be read"),
    "not.avro": (GOOD, "not.avro: broken Avro"),
    "open.csv": (b'text\n"no end\n' + b"x\n" * 10**5, "open.csv:.* is a quote left open"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name, max_row_bytes=10**5)


EMPTY = {"blank.jsonl": b"\n \n", "list.json": b"[]", "header.csv": b"text\n"}


@pytest.mark.parametrize("name", EMPTY)
def test_files_without_rows_are_named(
    tmp_path: Path, name: str, size: str, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    """At once where the rows are held in memory, else by whoever reads to the end."""
    (tmp_path / name).write_bytes(EMPTY[name])
    source = SourceConfig(f"{tmp_path}/{name}")
    if size == "small":
        with pytest.raises(DataError, match=f"{name} holds no rows"):
            open_chunks(source)
    with pytest.raises(DataError, match=rf"source '{source.name}'.* holds no (rows|example: 0 ro)"):
        read_examples(source, pico_tokenizer, DataConfig())
    with pytest.raises(DataError, match=rf"'{source.name}'.* holds no (rows|example)"):
        next(TrainLoader(DataConfig([source]), pico_tokenizer, 1, seed=0))


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow", "a.avro", "a.json"])
def test_files_cut_in_half_are_never_taken_for_whole(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, many(400))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"{name}.*(broken|cannot be read|not valid)"):
        rows_of(path)


def test_a_parquet_file_with_a_broken_page_names_the_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, many(400, 500), group=100)
    data = bytearray(path.read_bytes())
    group = pq.ParquetFile(path).metadata.row_group(2).column(0)
    for at in range(group.data_page_offset, group.data_page_offset + 40):
        data[at] = 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a.parquet: broken Parquet \(row group 2"):
        rows_of(path)


def test_a_damaged_avro_block_is_named_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.avro"
    write_avro(path, many(400), "deflate")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 30] = b"\xff" * 30
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a.avro: broken Avro \(block at byte \d+"):
        rows_of(path)


BROKEN_ROWS: dict[str, tuple[bytes, int, str]] = {
    "a.jsonl": (b'{"text": "a"}\n{"text": \n{"text": "c"}\n', 2, "not valid JSON"),
    "b.jsonl": (b'{"text": "a"}\n["a"]\n{"text": "c"}\n', 2, "this is a list"),
    "null.jsonl": (b'{"text": "a"}\nnull\n{"text": "c"}\n', 2, "this is a NoneType"),
    "twice.jsonl": (b'{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}\n{"a": 3}', 2, "key 'c' stands tw"),
    "twice.json": (b'[{"a": 1}, {"a": 1, "a": 1}, {"a": 3}]', -1, "the key 'a' stands twice"),
    "c.jsonl": (b'{"text": "a"}\n{"text": "\xff"}\n{"text": "c"}\n', 2, "not valid UTF-8"),
    "d.jsonl": (b'{"text": "a"}\n' + b"[" * 10**5 + b'\n{"text": "c"}', 2, "too deeply"),
    "half.jsonl": (b'{"text": "a"}\n{"text": "\\uD83d"}\n{"text": "c"}', 2, "surrogate"),
    "digits.jsonl": (b'{"a": 1}\n{"a": ' + b"1" * 5000 + b'}\n{"a": 3}', 2, "not valid JSON"),
    "long.jsonl": (
        b'{"text": "a"}\n{"text": "' + b"x" * 2**20 + b'"}\n{"text": "c"}',
        2,
        "the row has 1,048,589 bytes; `max_row_bytes` is 500,000",
    ),
    "endless.jsonl": (b'{"text": "a"}\n' + b"x" * 10**6 + b'\n{"text": "c"}', 2, "1,000,001 bytes"),
    "e.csv": (b"text,more\na,b\nc\nd,e\n", 3, "has 1 fields, not as many fields as the header"),
    "f.csv": (b"text,more\na,b\nc,d,e\nd,e\n", 3, "has 3 fields"),
    "g.csv": (b"text,more\na,b\n\xff,c\nd,e\n", 3, "not valid UTF-8"),
    "h.csv": (b'text,more\n"a\n b",b\n"c"d,e\nd,e\n', 4, "not valid CSV"),
    "half.json": (b'[{"a": "1"},\n {"a": "\\ud83d"},\n {"a": "3"}]', -1, "surrogate"),
    "cut row.json": (b'[{"a": "1"}, {"a": }, {"a": "3"}]', -1, "not valid JSON"),
    "deep row.json": (b'[{"a": "1"}, ' + b"[" * 10**5 + b"]" * 10**5 + b", {}]", -1, "too deeply"),
    "mixed.json": (b'[{"a": "1"}, ["a"], {"a": "3"}]', -1, "this is a list"),
    "big.json": (json.dumps([{"a": "1"}, {"a": "x" * 600_000}, {}]).encode(), -1, "max_row_bytes"),
}


@pytest.mark.parametrize("name", BROKEN_ROWS)
def test_broken_rows_do_not_hide_the_rows_behind_them(tmp_path: Path, name: str) -> None:
    content, line, message = BROKEN_ROWS[name]
    path = tmp_path / name
    path.write_bytes(content)
    for located in (
        list(open_chunks(SourceConfig(str(path), max_row_bytes=500_000)).rows()),
        _by_chunk(path, max_row_bytes=500_000),
    ):
        assert [isinstance(row, DataError) for _, row in located] == [False, True, False]
        assert located[1][0] == (f"{path}:{line}" if line > 0 else f"{path}, row 1")
        assert message in str(located[1][1])


def _by_chunk(path: Path, **options: Any) -> list[Any]:
    chunks = open_chunks(SourceConfig(str(path), **options), 60.0)
    return [located for chunk in range(len(chunks)) for located in chunks.read(chunk)]


def test_broken_text_and_an_empty_file_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.txt").write_bytes(b"x" * 2000)
    (tmp_path / "d.txt").write_bytes(b"good")
    located = _by_chunk(tmp_path, max_row_bytes=1000)
    assert [str(place).rpartition("/")[2] for place, _ in located] == [f"{n}.txt" for n in "abcd"]
    assert "not valid UTF-8 (unexpected end of data at byte 3)" in str(located[0][1])
    assert "empty" in str(located[1][1])
    assert "more than 1,000 bytes; raise `max_row_bytes`" in str(located[2][1])
    assert located[3][1] == {"text": "good"}
    units = rows_of(tmp_path / "c.txt", text_unit="paragraph", max_row_bytes=1000)
    assert "2,000 bytes" in str(units[0])


def test_paragraphs_that_are_too_long_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\n" * 600 + b"\nshort\n\n" + b"b\n" * 500)
    located = list(
        open_chunks(SourceConfig(str(path), text_unit="paragraph", max_row_bytes=1000)).rows()
    )
    assert "1,200 bytes" in str(located[0][1])
    assert located[1] == (f"{path}:602", {"text": "short"})
    assert located[2][1] == {"text": "b\n" * 499 + "b"}


def test_columnar_rows_that_are_too_long_or_no_text(tmp_path: Path) -> None:
    binary = pa.array([b"good", b"\xff\xfe", b"x" * 5000, None], pa.binary())
    table = pa.table({"text": binary.view(pa.string()), "n": [1, 2, 3, 4]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        located = list(open_chunks(SourceConfig(str(tmp_path / name), max_row_bytes=4000)).rows())
        assert located[0][1] == {"text": "good", "n": 1}
        assert "not valid UTF-8" in str(located[1][1])
        assert "`max_row_bytes` is 4,000" in str(located[2][1])
        assert located[3][1] == {"text": None, "n": 4}
        assert [place for place, _ in located] == [f"{tmp_path / name}, row {n}" for n in range(4)]


def test_rows_of_avro_that_are_too_long_or_no_records(tmp_path: Path) -> None:
    fastavro = pytest.importorskip("fastavro")
    with (tmp_path / "a.avro").open("wb") as file:
        fastavro.writer(file, AVRO_SCHEMA, [{"a": "1"}, {"a": "x" * 5000}, {"a": "3"}])
    rows = rows_of(tmp_path / "a.avro", max_row_bytes=4000)
    assert (rows[0], rows[2]) == ({"a": "1"}, {"a": "3"})
    assert "`max_row_bytes` is 4,000" in str(rows[1])
    with (tmp_path / "b.avro").open("wb") as file:
        fastavro.writer(file, "string", ["one", "two"])
    assert all("this is a str" in str(row) for row in rows_of(tmp_path / "b.avro"))


def test_a_gzip_bomb_of_lines_costs_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "bomb.jsonl.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = packer.compress(b'{"text": "')
    for _ in range(100):
        data += packer.compress(b" " * 2**20)
    path.write_bytes(data + packer.compress(b'"}\n{"text": "b"}\n') + packer.flush())
    assert path.stat().st_size < 2**18
    rows_of(write(tmp_path / "a.jsonl", ROWS))  # Imports are not to be measured.
    tracemalloc.start()
    rows = rows_of(path, max_row_bytes=2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "the row has 104,857,613 bytes" in str(rows[0]) and rows[1] == {"text": "b"}
    assert peak < 10 * 2**20


def test_many_rows_behind_few_packed_bytes_are_not_all_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b"x" * 5000 + b'"}\n', 9) * 6000)
    chunks = open_chunks(SourceConfig(str(path)), 60.0)
    assert len(chunks) == 1 and not chunks.by_row
    assert sum(1 for _ in chunks.read(0)) == 6000


def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    path.chmod(0)
    tmp_path.chmod(0o755)
    with _as_nobody(), pytest.raises(DataError, match=r"a\.jsonl may not be read"):
        rows_of(path)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """As a user who may not read everything, where this one may."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_permission_errors_are_told_as_such() -> None:
    from controlllm.common.storage.remote import describe

    error = PermissionError(13, "Permission denied", "/data/a.jsonl")
    assert "/data/a.jsonl may not be read" in describe(error, "/data/a.jsonl")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        rows_of(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.avro", "a.csv", "lz4.feather"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, name: str, size: str) -> None:
    path = write(tmp_path / name, many(3000))
    chunks = open_chunks(SourceConfig(str(path)), 60.0)
    rows = chunks.read(len(chunks) - 1)
    write(path, ROWS)
    if size == "small":  # It is held in memory.
        assert len(list(rows)) == 1
        return
    with pytest.raises(DataError, match=rf"{name} has changed: it has [0-9,]+ bytes, not"):
        list(rows)


def test_a_parquet_file_that_is_replaced_by_a_larger_one_with_fewer_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, many(3000), group=100)
    chunks = pickle.loads(pickle.dumps(RowGroupChunks(*_files_of(path))))
    write_parquet(path, many(9000), group=9000)
    with pytest.raises(DataError, match="has changed: it has no row group 29 any more"):
        list(chunks.read(29))


def _files_of(path: Path) -> Any:
    source = SourceConfig(str(path))
    return with_types(find_files(source, 60.0), source), source
