"""HDFS through WebHDFS: ranged reads over real sockets, and everything that may fail on the way."""

import pickle
import random
from typing import Any

import pytest
from tests.data.sources.making import WRITERS, chunk_rows, flat, many, rows_of, write, write_avro
from tests.webhdfs import WebHdfs

from controlllm.common.errors import DataError
from controlllm.common.storage.remote import describe
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources import open_chunks, opening

requests = pytest.importorskip("requests")


@pytest.fixture
def big(hdfs: WebHdfs) -> tuple[str, list[dict[str, Any]]]:
    """A JSON lines file of several ranges."""
    rows = many(30_000, 150)
    write(hdfs.folder / "a.jsonl", rows)
    return hdfs.address + "a.jsonl", rows


def opened(path: str, timeout: float = 60.0, **options: Any) -> Any:
    return open_chunks(SourceConfig(path, **options), timeout)


@pytest.mark.parametrize("name", WRITERS)
def test_every_type_from_hdfs(hdfs: WebHdfs, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "SMALL_BYTES", -1)
    rows = many(100)
    write(hdfs.folder / name, rows)
    as_text = name.endswith((".csv", ".tsv"))
    wanted = [{k: str(v) if as_text else v for k, v in row.items()} for row in rows]
    assert rows_of(hdfs.address + name) == flat(chunk_rows(hdfs.address + name)) == wanted


def test_a_chunk_of_json_lines_is_one_ranged_read(
    hdfs: WebHdfs, big: tuple[str, list[dict[str, Any]]]
) -> None:
    path, rows = big
    chunks = opened(path)
    assert len(chunks) == -(-(hdfs.folder / "a.jsonl").stat().st_size // 2**20)
    assert len(hdfs.requests) < 12  # Opening costs a few questions, however large the file is.
    hdfs.requests.clear()
    part = [row for _, row in pickle.loads(pickle.dumps(chunks)).read(2)]
    assert part == rows[rows.index(part[0]) :][: len(part)]
    reads = [request.params for request in hdfs.requests if request.node == "data"]
    assert [int(read["offset"]) for read in reads] == [2 * 2**20 - 1]
    assert 2**20 < int(reads[0]["length"]) < 1.1 * 2**20


def test_row_groups_and_avro_ranges(hdfs: WebHdfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "SMALL_BYTES", -1)
    noise = random.Random(0)
    rows = [{"text": f"{noise.getrandbits(8000):x}", "number": i} for i in range(2000)]
    size = write(hdfs.folder / "a.parquet", rows).stat().st_size
    chunks = opened(hdfs.address + "a.parquet")
    asked = [int(r.params["length"]) for r in hdfs.requests if r.node == "data"]
    assert len(chunks) == 5 and sum(asked) < size / 2
    assert [row["number"] for _, row in chunks.read(4, 399)] == [1999]
    write_avro(hdfs.folder / "a.avro", rows, "null")
    chunks = opened(hdfs.address + "a.avro")
    assert len(chunks) == -(-(hdfs.folder / "a.avro").stat().st_size // 2**20) > 1
    assert [row for chunk in range(len(chunks)) for _, row in chunks.read(chunk)] == rows


def test_globs_and_folders(hdfs: WebHdfs) -> None:
    rows = many(20)
    for name in ("day=1/part-0.jsonl", "day=2/part-0.jsonl", "_temporary/part-9.jsonl"):
        (hdfs.folder / "logs" / name).parent.mkdir(parents=True)
        (hdfs.folder / "logs" / name).write_bytes(write(hdfs.folder / "a.jsonl", rows).read_bytes())
    (hdfs.folder / "logs" / "_SUCCESS").touch()
    assert rows_of(hdfs.address + "logs") == rows * 2
    assert rows_of(hdfs.address + "logs/day=*/*.jsonl") == rows * 2
    assert rows_of(hdfs.address + "**/part-0.jsonl", max_rows=21) == [*rows, rows[0]]
    place, _ = next(open_chunks(SourceConfig(hdfs.address + "logs")).rows())
    assert place == f"{hdfs.address}logs/day=1/part-0.jsonl:1"
    with pytest.raises(DataError, match="no file matches"):
        rows_of(hdfs.address + "logs/*.parquet")


def test_the_user_is_told_and_not_shown(hdfs: WebHdfs) -> None:
    write(hdfs.folder / "a.jsonl", many(3))
    address = hdfs.address.replace("webhdfs://", "webhdfs://alice@") + "a.jsonl"
    place, _ = next(open_chunks(SourceConfig(address)).rows())
    assert place == f"{hdfs.address}a.jsonl:1"
    assert {request.params["user.name"] for request in hdfs.requests} == {"alice"}
    hdfs.requests.clear()
    rows_of(hdfs.address + "a.jsonl", storage_options={"user": "bob"})
    assert {request.params["user.name"] for request in hdfs.requests} == {"bob"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.avro"])
def test_a_data_node_that_dies_once_in_the_middle_of_a_read(
    hdfs: WebHdfs, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SMALL_BYTES", -1)
    rows = many(2000)
    write(hdfs.folder / name, rows)
    chunks = opened(hdfs.address + name)
    hdfs.faults.cut_read, hdfs.faults.times = 5000, 2
    found = [row for chunk in range(len(chunks)) for _, row in chunks.read(chunk)]
    assert hdfs.faults.times == 0  # It did die, twice,
    assert found == rows  # and nothing is lost or comes twice.


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.avro", "a.jsonl.gz"])
def test_a_data_node_that_dies_at_every_read(
    hdfs: WebHdfs, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SMALL_BYTES", -1)
    write(hdfs.folder / name, many(2000))
    chunks = opened(hdfs.address + name)
    hdfs.faults.cut_read = 20
    with pytest.raises(DataError, match=rf"webhdfs://127.0.0.1:\d+/{name} cannot be read"):
        list(chunks.read(0))


@pytest.mark.parametrize("node", ["name", "data"])
def test_a_node_that_never_answers(
    hdfs: WebHdfs, node: str, big: tuple[str, list[dict[str, Any]]]
) -> None:
    path, _ = big
    chunks = opened(path, timeout=1.0)
    hdfs.faults.hang = node
    with pytest.raises(DataError, match=r"a\.jsonl did not answer in time"):
        list(chunks.read(1))
    with pytest.raises(DataError, match=r"(time|answer|reached)"):
        opened(path, timeout=1.0)


def test_what_the_name_node_refuses(hdfs: WebHdfs, big: tuple[str, list[dict[str, Any]]]) -> None:
    path, _ = big
    with pytest.raises(DataError, match=rf"{hdfs.address}none.jsonl is not there"):
        opened(hdfs.address + "none.jsonl")
    chunks = opened(path)
    hdfs.faults.forbidden.add("/a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl may not be read .*Permission denied"):
        list(chunks.read(1))
    with pytest.raises(DataError, match=r"a\.jsonl may not be read.*Permission denied"):
        opened(path)
    hdfs.faults.clear()
    hdfs.faults.standby = True
    with pytest.raises(DataError, match=r"name node is on standby; give .* the active one"):
        list(chunks.read(1))
    with pytest.raises(DataError, match=r"standby"):
        opened(path)


def test_what_a_data_node_says_is_never_taken_for_data(
    hdfs: WebHdfs, big: tuple[str, list[dict[str, Any]]]
) -> None:
    path, _ = big
    chunks = opened(path)
    hdfs.faults.fail = True
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read to its end .*500"):
        list(chunks.read(1))
    hdfs.faults.clear()
    hdfs.faults.refuse = True
    with pytest.raises(DataError, match=r"a\.jsonl cannot be re"):
        list(chunks.read(1))


def test_a_page_that_says_not_found_is_no_server_that_is_not_there() -> None:
    """As a gateway answers for a path that it does not serve: HTTP 404, and no JSON."""
    response = requests.Response()
    response.status_code = 404
    failed = OSError("404 Client Error: Not Found")
    failed.__cause__ = requests.HTTPError("404 Client Error: Not Found", response=response)
    told = describe(failed, "webhdfs://host:9870/a.jsonl")
    assert told.startswith("webhdfs://host:9870/a.jsonl is not there (404 Client Error")
