"""What a benchmark lacks on a machine, in sentences that say how to get it."""

from importlib.metadata import PackageNotFoundError

import pytest

from controlllm.common.errors import ConfigError
from controlllm.evaluate.suites import missing, what_is_missing
from controlllm.evaluate.suites.suite import Benchmark

GATED = Benchmark("b", ("t",), "choice", 1, "org/secret", config="main", gated=True)
OPEN = Benchmark("b", ("t",), "choice", 1, "org/open", shots=5, splits=("test", "dev"))
SUBJECTS = Benchmark("b", ("t",), "choice", 1, "cais/mmlu", config="*", splits=("test", "dev"))


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """A machine without a network, without downloads and without a token."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def test_data_that_is_nowhere():
    assert what_is_missing(OPEN) == [
        "org/open is not on this machine and the hub is not reachable: put its files in "
        "DATA_DIR/open/test.jsonl, or fetch them elsewhere: `hf download org/open --repo-type "
        "dataset --local-dir DATA_DIR/open`."
    ]
    (told,) = what_is_missing(SUBJECTS)
    assert "DATA_DIR/mmlu/<subject>/test.jsonl" in told
    (told,) = what_is_missing(GATED)
    assert "only who agree to its terms" in told and "huggingface.co/datasets/org/secret" in told


def test_data_that_is_local(write_rows, tmp_path):
    write_rows("open/test.jsonl", [{}])
    (told,) = what_is_missing(OPEN, tmp_path / "data")
    assert told == (
        f"org/open lies in {tmp_path}/data without its split dev, which the examples are taken "
        f"from: put it in {tmp_path}/data/open/dev.jsonl."
    )
    write_rows("open/dev.jsonl", [{}])
    assert what_is_missing(OPEN, tmp_path / "data") == []
    write_rows("secret/main/test.csv", "a\n1\n")
    assert what_is_missing(GATED, str(tmp_path / "data")) == []
    write_rows("eval/mmlu20/anatomy.test.arrow", "x")
    write_rows("eval/mmlu20/anatomy.dev.arrow", "x")
    write_rows("eval/mmlu20/virology.dev.arrow", "x")
    assert what_is_missing(SUBJECTS, tmp_path / "data") == []


def test_a_data_folder_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"data_dir=.*is not a folder"):
        what_is_missing(OPEN, tmp_path / "absent")


@pytest.mark.parametrize("place", ["hub/datasets--org--open", "datasets/org___open"])
def test_data_that_was_downloaded(tmp_path, place):
    (tmp_path / "home" / place).mkdir(parents=True)
    assert what_is_missing(OPEN) == []


def test_the_hub(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setattr(missing, "_answers", lambda host, port: (host, port) == ("mirror", 8080))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert len(what_is_missing(OPEN)) == 1
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror:8080")
    assert what_is_missing(OPEN) == []
    assert len(what_is_missing(GATED)) == 1
    monkeypatch.setenv("HF_TOKEN", "x")
    assert what_is_missing(GATED) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(what_is_missing(GATED)) == 1


def test_nobody_answers():
    assert missing._answers("127.0.0.1", 1) is False


def needing(*extras):
    return Benchmark("b", ("t",), "choice", 1, extras=extras)


def test_packages(monkeypatch):
    installed = {"lm-eval": "0.4.13", "sympy": "1.14", "other": "1.0"}
    needs = {
        "lm-eval": [
            "sympy>=1.12; extra == 'math'",
            "math_verify[antlr]; extra == 'math'",
            "antlr4-python3-runtime==4.11; extra == 'math'",
            "absent; extra == 'more'",
            "absent-for-all",
        ],
        "other": None,
    }

    def version(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(missing, "version", version)
    monkeypatch.setattr(missing, "requires", needs.__getitem__)
    assert what_is_missing(needing("lm-eval[math]")) == [
        "math_verify, antlr4-python3-runtime==4.11 are not installed: "
        "`pip install 'lm-eval[math]'`."
    ]
    assert what_is_missing(needing("other>=0.5", "other")) == []
    assert what_is_missing(needing("other>=2")) == [
        "other>=2 is not installed: `pip install 'other>=2'`."
    ]
    installed |= {"math_verify": "0.8", "antlr4-python3-runtime": "4.9.3"}
    (told,) = what_is_missing(needing("lm-eval[math]"))
    assert told.startswith("antlr4-python3-runtime==4.11 is not installed")
    del installed["lm-eval"]
    assert what_is_missing(needing()) == [
        "lm-eval is not installed: `pip install 'controlllm[eval]'`."
    ]
    with pytest.raises(ConfigError, match=r"extras: 'a b' is nothing to install"):
        what_is_missing(needing("a b"))
