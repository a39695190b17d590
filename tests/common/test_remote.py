"""Remote files over real sockets: what is read is what lies there, and no wait is endless.

Where time must run out it is short (`SOON`); that a call ends is shown by the test ending.
"""

import gc
import json
import multiprocessing
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from controlllm.common.errors import DataError
from controlllm.common.storage.guarded import GuardedFileSystem
from controlllm.common.storage.remote import is_remote, open_filesystem, shown

SOON = 1.0
LATE = 60.0
BYTES = random.Random(1).randbytes(300_000)


@pytest.fixture
def hdfs(hdfs):
    (hdfs.folder / "data").mkdir()
    (hdfs.folder / "data" / "bytes.bin").write_bytes(BYTES)
    return hdfs


@pytest.fixture
def opened(hdfs):
    """The file system and the path of bytes.bin."""
    return open_filesystem(hdfs.address + "data/bytes.bin", timeout=LATE)


@pytest.fixture
def hasty(hdfs):
    """The same with a short time-out."""
    return open_filesystem(hdfs.address + "data/bytes.bin", timeout=SOON)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("hdfs://namenode:8020/a", True),
        ("webhdfs://h/a", True),
        ("s3://bucket/key", True),
        ("https://host/a.jsonl", True),
        ("file:///data/a", False),
        ("/data/a", False),
        ("a/b.jsonl", False),
        ("c://x", False),  # A drive of Windows.
        ("org/name", False),
    ],
)
def test_what_is_remote(path, expected):
    assert is_remote(path) is expected


def test_passwords_are_not_shown():
    assert shown("webhdfs://al:secret@host:1/x") == "webhdfs://al:***@host:1/x"
    assert shown("webhdfs://al@host:1/x") == "webhdfs://al@host:1/x"


# The server itself, through fsspec's own client: it is this test that shows that ours speaks the
# protocol as others understand it.


@pytest.fixture
def plain(hdfs):
    return fsspec.filesystem(
        "webhdfs", host="127.0.0.1", port=hdfs.port("name"), user="al", skip_instance_cache=True
    )


def test_fsspecs_client_reads(hdfs, plain):
    assert plain.cat_file("/data/bytes.bin") == BYTES
    assert plain.cat_file("/data/bytes.bin", start=1000, end=1500) == BYTES[1000:1500]
    assert plain.ls("/data") == ["/data/bytes.bin"]
    assert plain.find("/") == ["/data/bytes.bin"]
    assert plain.info("/data/bytes.bin")["size"] == len(BYTES)
    assert plain.info("/data")["type"] == "directory"
    assert plain.content_summary("/")["length"] == len(BYTES)
    assert plain.ukey("/data/bytes.bin")["algorithm"] == "MD5-of-1MD5-of-512CRC32"
    assert plain.home_directory() == "/user/al"
    assert ("name", "OPEN") in [(r.node, r.op) for r in hdfs.requests]
    assert ("data", "OPEN") in [(r.node, r.op) for r in hdfs.requests]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        plain.info("/absent")


def test_fsspecs_client_writes(hdfs, plain):
    plain.makedirs("/new/folder")
    with plain.open("/new/folder/a", "wb", block_size=2**17) as file:
        file.write(BYTES)  # In three blocks: created, then appended to.
    assert (hdfs.folder / "new/folder/a").read_bytes() == BYTES
    plain.mv("/new/folder/a", "/new/b")
    assert (hdfs.folder / "new/b").read_bytes() == BYTES
    with pytest.raises(RuntimeError, match="non empty"):
        plain.rm("/new")
    plain.rm("/new", recursive=True)
    assert not (hdfs.folder / "new").exists()
    assert "APPEND" in hdfs.ops("data")


# Ours.


def test_reading(hdfs, opened):
    filesystem, path = opened
    assert path == "/data/bytes.bin"
    with filesystem.open(path) as file:
        file.seek(123_456)
        assert file.read(1000) == BYTES[123_456:124_456]
        file.seek(0)
        assert file.read() == BYTES
    assert filesystem.glob("/data/*.bin") == ["/data/bytes.bin"]
    assert filesystem.isdir("/data") and not filesystem.exists("/data/no")


def test_large_reads_go_in_pieces(hdfs):
    (hdfs.folder / "large.bin").write_bytes(BYTES * 30)  # 9 MB
    filesystem, path = open_filesystem(hdfs.address + "large.bin", timeout=LATE)
    with filesystem.open(path) as file:
        assert file.read() == BYTES * 30
    lengths = [int(r.params["length"]) for r in hdfs.requests if (r.node, r.op) == ("data", "OPEN")]
    assert max(lengths) <= 4 * 2**20 and len(lengths) >= 3


def test_pyarrow_reads_row_groups(hdfs):
    table = pa.table({"text": [f"row {i}" for i in range(1000)]})
    pq.write_table(table, hdfs.folder / "rows.parquet", row_group_size=100)
    filesystem, path = open_filesystem(hdfs.address + "rows.parquet", timeout=LATE)
    arrow = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
    with pq.ParquetFile(path, filesystem=arrow) as file:
        assert file.num_row_groups == 10
        assert file.read_row_group(7)["text"].to_pylist() == table["text"].to_pylist()[700:800]


def test_writing_and_text(hdfs, opened):
    filesystem, _ = opened
    with filesystem.open("/out/rows.jsonl.gz", "wt", compression="gzip") as file:
        for i in range(3):
            file.write(json.dumps({"i": i}) + "\n")
    with filesystem.open("/out/rows.jsonl.gz", "rt", compression="gzip") as file:
        assert [json.loads(line)["i"] for line in file] == [0, 1, 2]


def test_upload_is_one_stream(hdfs, opened, tmp_path):
    filesystem, _ = opened
    (tmp_path / "large").write_bytes(BYTES * 30)
    filesystem.put_file(str(tmp_path / "large"), "/up/large")
    assert (hdfs.folder / "up/large").read_bytes() == BYTES * 30
    assert hdfs.ops("data").count("CREATE") == 1 and "APPEND" not in hdfs.ops("data")


def test_renaming_that_is_refused_is_an_error(opened):
    filesystem, _ = opened
    with pytest.raises(OSError, match="could not be renamed"):
        filesystem.mv("/absent", "/data/other")


def test_who_asks(hdfs, monkeypatch):
    """In the address, in the options, in HADOOP_USER_NAME; a token goes alone."""

    def asked(address, options=None):
        open_filesystem(address + "data", options, timeout=LATE)
        return {k: v for k, v in hdfs.requests[-1].params.items() if k != "op"}

    monkeypatch.delenv("HADOOP_USER_NAME", raising=False)
    assert asked(hdfs.address) == {}
    assert asked(hdfs.address.replace("//", "//al@")) == {"user.name": "al"}
    assert asked(hdfs.address, {"user": "bo"}) == {"user.name": "bo"}
    monkeypatch.setenv("HADOOP_USER_NAME", "cy")
    assert asked(hdfs.address) == {"user.name": "cy"}
    assert asked(hdfs.address, {"token": "t0k"}) == {"delegation": "t0k"}
    with pytest.raises(DataError, match="HADOOP_USER_NAME"):
        open_filesystem("hdfs://al@namenode/x")


# Faults.


def test_a_body_that_breaks_off_is_an_error(hdfs, opened):
    filesystem, path = opened
    hdfs.faults.cut_read = 1000
    with filesystem.open(path) as file, pytest.raises(OSError, match=r"127\.0\.0\.1"):
        file.read()
    hdfs.faults.clear()
    with filesystem.open(path) as file:
        assert file.read() == BYTES


def test_an_error_of_the_data_node_is_not_taken_for_data(hdfs, opened):
    filesystem, path = opened
    hdfs.faults.fail = True
    with filesystem.open(path) as file, pytest.raises(OSError, match="HTTP 500"):
        file.read()


@pytest.mark.parametrize("node", ["name", "data"])
def test_a_node_that_never_answers(hdfs, hasty, node):
    filesystem, path = hasty
    hdfs.faults.hang = node
    with pytest.raises(TimeoutError, match=r"127\.0\.0\.1"), filesystem.open(path) as file:
        file.read()


def test_after_a_time_out_reading_goes_on_at_the_right_place(hdfs, hasty):
    filesystem, path = hasty
    with filesystem.open(path, block_size=1000, cache_type="none") as file:
        assert file.read(100) == BYTES[:100]
        hdfs.faults.drip = 0.3
        with pytest.raises(TimeoutError):
            file.read(100)
        hdfs.faults.clear()
        file.seek(5000)
        assert file.read(1000) == BYTES[5000:6000]


def test_a_drip_is_not_progress_enough(hdfs, hasty):
    filesystem, path = hasty
    hdfs.faults.drip = 0.1  # Each byte in time for the socket; the piece would take a day.
    with filesystem.open(path) as file, pytest.raises(TimeoutError, match="1 s"):
        file.read()


def test_a_data_node_that_refuses(hdfs, opened):
    filesystem, path = opened
    hdfs.faults.refuse = True
    with filesystem.open(path) as file, pytest.raises(OSError, match="refused"):
        file.read()


def test_a_server_that_cannot_say_is_no_empty_folder(hdfs, opened):
    """The plain client swallows such errors, and files would be missing in silence."""
    filesystem, path = opened
    (hdfs.folder / "data" / "inner").mkdir()
    (hdfs.folder / "data" / "inner" / "b.bin").write_bytes(b"b")
    assert filesystem.find("/data") == [path, "/data/inner/b.bin"]
    assert filesystem.glob("/nowhere/*") == []
    hdfs.faults.forbidden = {"/data/inner"}
    for ask in (
        lambda: filesystem.find("/data"),
        lambda: filesystem.glob("/data/**/*.bin"),
        lambda: filesystem.exists("/data/inner/b.bin"),
        lambda: filesystem.isdir("/data/inner"),
    ):
        with pytest.raises(PermissionError):
            ask()


def test_standby_and_forbidden_are_told_at_opening(hdfs):
    hdfs.faults.standby = True
    with pytest.raises(DataError, match="state standby"):
        open_filesystem(hdfs.address + "data", timeout=LATE)
    hdfs.faults.clear()
    hdfs.faults.forbidden = {"/data"}
    with pytest.raises(DataError, match=r"Permission denied.*give the user"):
        open_filesystem(hdfs.address + "data/*.bin", timeout=LATE)


def test_a_full_disk(hdfs, opened, tmp_path):
    filesystem, _ = opened
    (tmp_path / "f").write_bytes(BYTES)
    hdfs.faults.disk_bytes = 100_000
    with pytest.raises(OSError, match="minReplication"):
        filesystem.put_file(str(tmp_path / "f"), "/up/f")
    with pytest.raises(OSError, match="127"), filesystem.open("/up/g", "wb") as file:
        file.write(BYTES)


def test_a_data_node_that_dies_while_it_is_written_to(hdfs, opened, tmp_path):
    filesystem, _ = opened
    (tmp_path / "f").write_bytes(BYTES)
    hdfs.faults.cut_write = 100_000
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        filesystem.put_file(str(tmp_path / "f"), "/up/f")


def silent_server():
    """Takes connections and says nothing."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


@pytest.mark.parametrize("scheme", ["hdfs", "webhdfs", "http"])
def test_servers_that_are_silent_or_not_there(scheme):
    if scheme == "hdfs":
        pytest.importorskip("hdfs_native")
    with silent_server() as server:
        port = server.getsockname()[1]
        with pytest.raises(DataError, match=f"{scheme}://127.0.0.1:{port}"):
            open_filesystem(f"{scheme}://127.0.0.1:{port}/x", timeout=SOON)
    with pytest.raises(DataError, match="cannot be reached"):
        open_filesystem(f"{scheme}://127.0.0.1:{port}/x", timeout=SOON)


def test_addresses_that_cannot_work():
    for address, told in (
        ("webhdfs:///folder", "names no host"),
        ("webhdfs://host:port/x", "is no address"),
        ("foo://host/x", "foo:// is not opened"),
    ):
        with pytest.raises(DataError, match=told):
            open_filesystem(address, timeout=LATE)
    with pytest.raises(DataError, match="delegation token"):
        open_filesystem("webhdfs://al@host/x", {"token": "t0k"}, timeout=LATE)


def test_options_from_the_environment(hdfs):
    """The way for secrets, which then stand in no file: FSSPEC_{PROTOCOL}_{OPTION}."""
    code = (
        "import sys; from controlllm.common.storage.remote import open_filesystem; "
        "open_filesystem(sys.argv[1], timeout=20)"
    )
    environment = os.environ | {"FSSPEC_WEBHDFS_TOKEN": "t0k"}
    subprocess.run([sys.executable, "-c", code, hdfs.address], env=environment, check=True)
    assert hdfs.requests[-1].params["delegation"] == "t0k"


def test_a_missing_client_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "hdfs_native", None)
    with pytest.raises(DataError, match="pip install hdfs-native"):
        open_filesystem("hdfs://namenode/x")


# Processes.


def read_in_child(filesystem, path, answers):
    with filesystem.open(path) as file:
        file.seek(1000)
        answers.put((os.getpid(), file.read(10)))


@pytest.mark.parametrize(("method", "workers"), [("fork", 3), ("spawn", 1)])
def test_worker_processes(opened, method, workers):
    filesystem, path = opened
    with filesystem.open(path) as file:
        file.read(10)  # The parent's connections are open.
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    children = [
        context.Process(target=read_in_child, args=(*opened, answers)) for _ in range(workers)
    ]
    for child in children:
        child.start()
    found = dict(answers.get(timeout=120) for _ in children)
    for child in children:
        child.join()
    assert len(found) == workers and set(found.values()) == {BYTES[1000:1010]}
    assert filesystem.cat_file(path, 0, 5) == BYTES[:5]


def let_go(filesystems, new_client):
    """In a forked process."""
    gc.collect()
    if new_client:
        filesystems[0].client  # noqa: B018  # it connects when it is first asked for


@pytest.mark.parametrize("new_client", [False, True])
def test_clients_of_a_parent_are_not_destroyed(new_client):
    """hdfs-native's wait for threads that are not there any more after a fork."""
    pytest.importorskip("hdfs_native")
    filesystem = GuardedFileSystem("hdfs", {"host": "127.0.0.1", "port": 1}, LATE, "nobody")
    filesystem.client  # noqa: B018  # it connects when it is first asked for
    kept = [filesystem]
    gc.disable()
    try:
        if not new_client:  # It is garbage when the process is forked.
            kept.append(kept)
            kept = []
        del filesystem
        context = multiprocessing.get_context("fork")
        child = context.Process(target=let_go, args=(kept, new_client))
        child.start()
    finally:
        gc.enable()
    child.join(20)
    if child.is_alive():
        child.kill()
    child.join()
    assert child.exitcode == 0


def test_pickled(opened):
    again = pickle.loads(pickle.dumps(opened[0]))
    assert again == opened[0]
    assert again.cat_file(opened[1]) == BYTES


# HTTP.


@pytest.fixture
def website(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "a.txt").write_bytes(BYTES)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def test_a_web_server_that_is_no_file_system_is_told_from_one_that_is_not_there(website):
    """It answers WebHDFS's question with a page that says 404."""
    address = website.replace("http:", "webhdfs:") + "no/such/folder"
    with pytest.raises(DataError, match=r"no/such/folder is not there .*404.*check path, host"):
        open_filesystem(address, timeout=LATE)


def test_http(website, capfd):
    filesystem, path = open_filesystem(website + "a.txt", timeout=LATE)
    assert path == website + "a.txt"
    with filesystem.open(path) as file:
        assert file.read() == BYTES
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    worker = context.Process(target=read_whole, args=(filesystem, path, answers))
    worker.start()
    assert answers.get(timeout=60) == len(BYTES)
    worker.join()
    with pytest.raises(FileNotFoundError):
        filesystem.open(website + "b.txt").read()


def read_whole(filesystem, path, answers):
    with filesystem.open(path) as file:
        answers.put(len(file.read()))


def test_local_files_need_no_server(tmp_path):
    (tmp_path / "a").write_text("x")
    filesystem, path = open_filesystem(str(tmp_path / "a"))
    assert filesystem.cat_file(path) == b"x"
    filesystem, path = open_filesystem(f"file://{tmp_path}/a")
    assert filesystem.cat_file(path) == b"x"
