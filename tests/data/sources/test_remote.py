"""Files at other addresses: in fsspec's memory, and on web servers with and without ranges."""

import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.data.sources.making import (
    WRITERS,
    chunk_rows,
    flat,
    many,
    rows_of,
    write,
)
from tests.data.sources.serving_files import WebFiles

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources import MemoryChunks, open_chunks, opening
from controlllm.data.sources.lines import LineChunks
from controlllm.data.sources.parquet import RowGroupChunks

ROWS = many(300)


def expected(name: str) -> list[dict]:
    as_text = name.endswith((".csv", ".tsv"))
    return [{k: str(v) if as_text else v for k, v in row.items()} for row in ROWS]


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[str]:
    """`memory://files/` with a file of every type, and two folders below."""
    import fsspec

    filesystem = fsspec.filesystem("memory")
    for name in WRITERS:
        filesystem.pipe(f"/files/all/{name}", write(tmp_path / name, ROWS).read_bytes())
        if name.endswith(".jsonl"):
            filesystem.pipe(f"/files/lines/deep/{name}", (tmp_path / name).read_bytes())
    filesystem.pipe("/files/lines/_SUCCESS", b"")
    yield "memory://files/"
    filesystem.rm("/files", recursive=True)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("name", WRITERS)
def test_every_type_elsewhere(
    in_memory: str, name: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr(opening, "SMALL_BYTES", -1)
    path = f"{in_memory}all/{name}"
    assert rows_of(path) == flat(chunk_rows(path)) == expected(name)
    assert rows_of(path, max_rows=7) == expected(name)[:7]
    place, _ = next(open_chunks(SourceConfig(path)).rows())
    assert str(place).startswith(f"memory://files/all/{name}")


def test_globs_and_folders_elsewhere(in_memory: str) -> None:
    wanted = expected("a.jsonl")
    assert rows_of(f"{in_memory}lines") == wanted * 3
    assert rows_of(f"{in_memory}lines/") == wanted * 3
    assert rows_of(f"{in_memory}**/*.jsonl", max_rows=601) == [*wanted * 2, wanted[0]]
    assert rows_of(f"{in_memory}all/a.par*") == wanted
    with pytest.raises(DataError, match=r"holds files of types .*'parquet', 'text'|'parquet'"):
        rows_of(f"{in_memory}all")
    with pytest.raises(DataError, match=r"no file matches 'memory://files/\*.xml'"):
        rows_of(f"{in_memory}*.xml")
    with pytest.raises(DataError, match=r"memory://files/none.jsonl is not there"):
        rows_of(f"{in_memory}none.jsonl")


def test_a_saved_data_set_elsewhere(tmp_path: Path) -> None:
    import fsspec

    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=data, test=data.select([5])).save_to_disk(
        tmp_path / "saved", num_shards={"train": 3, "test": 1}
    )
    fsspec.filesystem("memory").put(str(tmp_path / "saved"), "/saved", recursive=True)
    try:
        assert rows_of("memory://saved") == ROWS
        assert rows_of("memory://saved", split="test", source_type="saved") == [ROWS[5]]
    finally:
        fsspec.filesystem("memory").rm("/saved", recursive=True)


def test_fingerprints_do_not_depend_on_the_place(in_memory: str, tmp_path: Path) -> None:
    here = open_chunks(SourceConfig(str(tmp_path / "a.jsonl")), 60.0)
    there = open_chunks(SourceConfig(f"{in_memory}all/a.jsonl"), 60.0)
    assert here.fingerprint == there.fingerprint and here.stamp != there.stamp


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WebFiles]:
    pytest.importorskip("aiohttp")
    folder = tmp_path / "site"
    folder.mkdir()
    with WebFiles(folder, request.param) as running:
        yield running


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "SMALL_BYTES", 1000)


NEEDS_RANGES = ("a.parquet",)


@pytest.mark.parametrize("name", WRITERS)
def test_every_type_from_the_web(site: WebFiles, name: str, large: None) -> None:
    write(site.folder / name, ROWS)
    path = f"{site.address}{name}?download=true"
    if name in NEEDS_RANGES and not site.ranges:
        with pytest.raises(DataError, match=r"no HTTP ranges.*download the file"):
            rows_of(path)
        return
    assert rows_of(path) == flat(chunk_rows(path)) == expected(name)


@pytest.mark.parametrize("name", NEEDS_RANGES)
def test_small_files_from_the_web_need_no_ranges(site: WebFiles, name: str) -> None:
    write(site.folder / name, ROWS)
    assert isinstance(open_chunks(SourceConfig(site.address + name), 60.0), MemoryChunks)
    assert rows_of(site.address + name) == expected(name)


def test_a_listing_of_links_is_a_folder_and_takes_globs(site: WebFiles) -> None:
    (site.folder / "sub").mkdir()
    write(site.folder / "sub" / "a.jsonl", ROWS)
    write(site.folder / "sub" / "bom.jsonl", ROWS)
    assert rows_of(f"{site.address}sub/*.jsonl") == expected("a.jsonl") * 2
    assert rows_of(f"{site.address}sub/") == expected("a.jsonl") * 2


def test_json_lines_are_read_by_ranges_where_the_server_can(site: WebFiles) -> None:
    rows = many(30_000, 150)
    path = write(site.folder / "a.jsonl", rows)
    chunks = open_chunks(SourceConfig(site.address + "a.jsonl"), 60.0)
    assert isinstance(chunks, LineChunks)
    assert len(chunks) == (-(-path.stat().st_size // 2**20) if site.ranges else 1)
    site.requests.clear()
    part = [row for _, row in pickle.loads(pickle.dumps(chunks)).read(len(chunks) - 1)]
    assert part == rows[-len(part) :]
    if site.ranges:
        first = (len(chunks) - 1) * 2**20 - 1
        assert [request[2] for request in site.requests] == [
            f"bytes={first}-{path.stat().st_size - 1}"
        ]


def test_row_groups_are_read_by_ranges(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    import random

    noise = random.Random(0)
    rows = [{"text": f"{noise.getrandbits(8000):x}", "number": i} for i in range(3000)]
    path = write(tmp_path / "a.parquet", rows)
    with WebFiles(tmp_path, ranges=True) as site:
        chunks = open_chunks(SourceConfig(site.address + "a.parquet"), 60.0)
        assert isinstance(chunks, RowGroupChunks) and len(chunks) == 5 and chunks.num_rows == 3000
        asked = [request[2] for request in site.requests if request[0] == "GET" and request[2]]
        assert sum(_length(span) for span in asked) < path.stat().st_size / 4
        assert [row for _, row in chunks.read(3, 100)] == rows[1900:2400]
        place, _ = next(chunks.read(3, 100))
        assert place == f"{site.address}a.parquet, row 1900"


def _length(span: str) -> int:
    start, _, end = span.removeprefix("bytes=").partition("-")
    return int(end) - int(start) + 1


def test_a_read_that_breaks_off_goes_on_where_it_stood(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    rows = many(30_000, 150)
    write(tmp_path / "a.jsonl", rows)
    with WebFiles(tmp_path, ranges=True) as site:
        chunks = open_chunks(SourceConfig(site.address + "a.jsonl"), 60.0)
        whole = [row for _, row in chunks.read(1)]
        site.cuts = 2
        assert [row for _, row in chunks.read(1)] == whole
        assert site.cuts == 0
        site.cuts = 100
        with pytest.raises(DataError, match=r"a\.jsonl cannot be read to its end"):
            list(chunks.read(1))


def test_a_stream_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    write(tmp_path / "a.jsonl", many(30_000, 150))
    with WebFiles(tmp_path, ranges=False) as site:
        chunks = open_chunks(SourceConfig(site.address + "a.jsonl"), 60.0)
        site.cuts = 1
        with pytest.raises(DataError, match=r"a\.jsonl cannot be read to its end"):
            list(chunks.read(0))


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "is not there"), (403, "may not be read"), (401, "may not be read")],
)
def test_refusals_of_web_servers(site: WebFiles, status: int, message: str) -> None:
    site.statuses["/a.jsonl"] = status
    with pytest.raises(DataError, match=rf"{site.address}a.jsonl {message}"):
        rows_of(site.address + "a.jsonl")


@pytest.mark.parametrize("scheme", ["http", "webhdfs", "hdfs"])
def test_nobody_listens(scheme: str) -> None:
    pytest.importorskip({"http": "aiohttp", "webhdfs": "requests", "hdfs": "hdfs_native"}[scheme])
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(DataError, match=rf"{scheme}://127.0.0.1:{port}/a.jsonl.*(reach|answer)"):
        rows_of_within(f"{scheme}://127.0.0.1:{port}/a.jsonl", 2.0)


def rows_of_within(path: str, timeout: float) -> list:
    return list(open_chunks(SourceConfig(path), timeout).rows())


def test_an_unknown_scheme_and_a_missing_client() -> None:
    with pytest.raises(DataError, match=r"nowhere://x/a\.jsonl"):
        rows_of("nowhere://x/a.jsonl")
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match="pip install s3fs"):
            rows_of("s3://bucket/a.jsonl")


def test_many_files_elsewhere_open_with_their_footers_only(in_memory: str, tmp_path: Path) -> None:
    import fsspec

    filesystem = fsspec.filesystem("memory")
    for number in range(20):
        filesystem.pipe(f"/files/many/{number:02}.parquet", (tmp_path / "a.parquet").read_bytes())
    chunks = open_chunks(SourceConfig(f"{in_memory}many", max_rows=5950), 60.0)
    assert chunks.num_rows == 5950
    assert [row["number"] for _, row in chunks.rows()] == [*range(300)] * 19 + [*range(250)]
