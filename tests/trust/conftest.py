"""Fixtures of the tests of trust."""

import pytest
from tests.cli.conftest import cli, finished_run, sidecar, workplace
from tests.train.conftest import loaded, pretrained_pico, run_config, texts
from tests.webhdfs import WebHdfs

from controlllm.checkpoint.mirror import upload

__all__ = [
    "cli",
    "cluster",
    "finished_run",
    "loaded",
    "pretrained_pico",
    "run_config",
    "sidecar",
    "texts",
    "workplace",
]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A WebHDFS server over real sockets; what is fetched from it goes below `tmp_path`/cache."""
    monkeypatch.setenv("CONTROLLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(upload, "_PAUSE_SECONDS", 0.01)
    with WebHdfs(tmp_path / "cluster") as server:
        yield server
