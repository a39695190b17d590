"""However a file is cut, each row is in exactly one chunk, and a chunk can be entered anywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.sources.making import flat, many, write_avro

from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.avro import AvroChunks
from controlllm.data.sources.finding import find_files, with_types
from controlllm.data.sources.lines import LineChunks
from controlllm.data.sources.ranges import RangeChunks

TEXTS = st.text(st.sampled_from('aé二\U0001f600 \\"\t\n'), max_size=30)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r\n \t\r\n", b"\n \n\n"])
QUICK = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def cut(kind: type[RangeChunks], path: Path, range_bytes: int, **options: Any) -> RangeChunks:
    source = SourceConfig(str(path), **options)
    return kind(with_types(find_files(source, 60.0), source), source, range_bytes)


def read(chunks: RangeChunks, chunk: int, start: int = 0) -> list[Any]:
    return [row for _, row in chunks.read(chunk, start)]


@QUICK
@given(
    lines=st.lists(st.tuples(TEXTS, ENDS), min_size=1, max_size=20),
    before=st.sampled_from([b"", b"\n", b"\r\n\r\n", b"\xef\xbb\xbf"]),
    last_line_ends=st.booleans(),
    range_bytes=st.integers(1, 200),
)
def test_lines_are_in_exactly_one_chunk(
    tmp_path: Path,
    lines: list[tuple[str, bytes]],
    before: bytes,
    last_line_ends: bool,
    range_bytes: int,
) -> None:
    rows = [{"text": text} for text, _ in lines]
    ends = [end for _, end in lines[:-1]] + [lines[-1][1] if last_line_ends else b""]
    spelt = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path = tmp_path / "a.jsonl"
    path.write_bytes(before + b"".join(a + b for a, b in zip(spelt, ends, strict=True)))
    chunks = cut(LineChunks, path, range_bytes)
    by_chunk = [read(chunks, chunk) for chunk in range(len(chunks))]
    assert len(chunks) == -(-path.stat().st_size // range_bytes)
    assert flat(by_chunk) == rows == [row for _, row in chunks.rows()]
    for chunk, expected in enumerate(by_chunk):
        assert chunks.count(chunk) == len(expected)
        for start in range(len(expected) + 2):
            assert read(chunks, chunk, start) == expected[start:]


@QUICK
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    limit=st.integers(14, 50),
    range_bytes=st.integers(1, 100),
)
def test_overlong_lines_count_as_one_bad_row_wherever_the_cuts_are(
    tmp_path: Path, sizes: list[int], limit: int, range_bytes: int
) -> None:
    lines = [json.dumps({"text": "x" * size}).encode() for size in sizes]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    chunks = cut(LineChunks, path, range_bytes, max_row_bytes=limit)
    found = [row for chunk in range(len(chunks)) for row in read(chunks, chunk)]
    assert [isinstance(row, dict) for row in found] == [len(line) <= limit for line in lines]
    for line, row in zip(lines, found, strict=True):
        if len(line) > limit:
            assert f"max_row_bytes` is {limit}" in str(row)


def test_the_place_of_a_row_far_into_a_file_is_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "\xc3\xa9"}\n\n{"a": 2}\n{"a": 3}\n')
    chunks = cut(LineChunks, path, 13)
    places = [place for chunk in range(len(chunks)) for place, _ in chunks.read(chunk)]
    assert places == [f"{path}:1", f"{path}, byte 13", f"{path}, byte 22"]


def test_a_line_over_many_ranges_is_not_read_once_for_each_of_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * 3_000_000 + b'"}\n{"text": "end"}\n')
    chunks = cut(LineChunks, path, 100_000, max_row_bytes=1000)
    opened: list[int] = []
    kinds = [[type(row).__name__ for row in read(chunks, chunk)] for chunk in range(len(chunks))]
    assert kinds == [["DataError"], *[[]] * 29, ["dict"]]
    file = chunks.files[0]
    part = chunks.range(5)
    from controlllm.data.sources.lines import _first_line

    with file.open_raw(2**16) as raw:
        assert part.ends_before(_first_line(raw, part))
        opened.append(raw.tell())
    assert opened[0] < part.start + 200_000


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2"])
@pytest.mark.parametrize("range_bytes", [1, 100, 999, 1000, 4321, 10**6])
def test_avro_records_are_in_exactly_one_chunk(
    tmp_path: Path, codec: str, range_bytes: int
) -> None:
    rows = many(200)
    path = tmp_path / "a.avro"
    write_avro(path, rows, codec)
    if range_bytes == 1:  # A range for each byte: a shorter file shows as much.
        rows = rows[:45]
        write_avro(path, rows, codec)
    chunks = cut(AvroChunks, path, range_bytes)
    by_chunk = [read(chunks, chunk) for chunk in range(len(chunks))]
    assert flat(by_chunk) == rows
    for chunk, expected in enumerate(by_chunk):
        if expected:
            assert chunks.count(chunk) == len(expected)
            for start in (1, len(expected) - 1, len(expected), len(expected) + 5):
                assert read(chunks, chunk, start) == expected[start:]
    places = [place for chunk in range(len(chunks)) for place, _ in chunks.read(chunk)]
    assert len(set(places)) == len(rows)
    assert places == [place for place, _ in chunks.rows()]
