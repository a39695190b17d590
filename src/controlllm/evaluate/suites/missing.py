"""What a benchmark needs that this machine has not, and how to get it. No model, no lm-eval."""

import os
import re
import socket
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from controlllm.common.errors import ConfigError
from controlllm.evaluate.suites.layouts import find_files, short_name, usual_place
from controlllm.evaluate.suites.stock import folder_of_task
from controlllm.evaluate.suites.suite import Benchmark

__all__ = ["hub_is_reachable", "what_is_left_out", "what_is_missing"]

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_SECONDS = 0.5
_SUBJECT = re.compile(r"""^["']?dataset_name["']?:[ ]*["']?([^"'\n]+?)["']?[ ]*$""", re.MULTILINE)


def what_is_missing(benchmark: Benchmark, data_dir: str | Path | None = None) -> list[str]:
    """What has to be done before a benchmark can be run here; empty = nothing.

    Args:
        benchmark: of a suite.
        data_dir: the folder with local data, if there is one.

    Returns:
        Sentences that say what is missing and how to get it: packages first, then data.

    Raises:
        ConfigError: `data_dir` is no folder, or holds a split in two forms.
    """
    return [*_packages(benchmark), *_data(benchmark, data_dir)]


def what_is_left_out(benchmark: Benchmark, data_dir: str | Path | None) -> str | None:
    """Which subjects are not asked, as local data hold others of the same benchmark.

    Args:
        benchmark: of a suite.
        data_dir: the folder with local data, if there is one.

    Returns:
        A sentence; None where all are there, none is, or there are no subjects.
    """
    name = benchmark.dataset
    if data_dir is None or name is None or benchmark.config != "*":
        return None
    folder, measured = Path(data_dir), benchmark.splits[:1]
    if find_files(folder, name, "*", measured) is None:
        return None
    subjects = _subjects(benchmark)
    if not subjects:
        return f"subjects that {data_dir} does not hold, if any, are left out; items counts all."
    gone = sum(find_files(folder, name, one, measured) is None for one in subjects)
    if gone in (0, len(subjects)):
        return None
    return (
        f"{gone} of its {len(subjects)} subjects are left out, as {data_dir} has no data for them; "
        "items and MDE80 are those of all."
    )


def _subjects(benchmark: Benchmark) -> set[str]:
    """The subjects by lm-eval's files, which are not read as YAML; empty where it is not known."""
    found: set[str] = set()
    for task in benchmark.tasks:
        folder = folder_of_task(task)
        if folder is None:
            return set()
        for path in folder.glob("*.yaml"):
            found |= set(_SUBJECT.findall(path.read_text(encoding="utf-8", errors="replace")))
    return found


def hub_is_reachable() -> bool:
    """Whether the hub may be asked for data: not forbidden, and there, or behind a proxy."""
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _OFFLINE):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy")):
        return True
    parts = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    usual = 80 if parts.scheme == "http" else 443
    return _answers(parts.hostname or "huggingface.co", parts.port or usual)


@cache
def _answers(host: str, port: int) -> bool:
    """Whether a server takes connections; without waiting long for names that none resolves."""
    found: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), _SECONDS).close()
        except OSError:
            return
        found.append(True)

    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return bool(found)


def _packages(benchmark: Benchmark) -> Iterator[str]:
    if lacking := _lacking("lm-eval"):
        yield f"{', '.join(lacking)} is not installed: `pip install 'controlllm[eval]'`."
    for extra in benchmark.extras:
        if lacking := _lacking(extra):
            verb = "is" if len(lacking) == 1 else "are"
            yield f"{', '.join(lacking)} {verb} not installed: `pip install '{extra}'`."


def _lacking(requirement: str) -> list[str]:
    """What is not installed, of a package and of those that its named extras add."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(requirement)
    except InvalidRequirement as error:
        raise ConfigError(
            f"extras: {requirement[:100]!r} is nothing to install ({error})."
        ) from error
    if not _satisfied(wanted):
        return [str(wanted)]
    added = [Requirement(line) for line in requires(wanted.name) or []]
    return [
        f"{one.name}{one.specifier}"
        for one in added
        if one.marker is not None
        and not one.marker.evaluate({"extra": ""})
        and any(one.marker.evaluate({"extra": extra}) for extra in wanted.extras)
        and not _satisfied(one)
    ]


def _satisfied(requirement: Any) -> bool:
    try:
        return bool(requirement.specifier.contains(version(requirement.name), prereleases=True))
    except PackageNotFoundError:
        return False


def _data(benchmark: Benchmark, data_dir: str | Path | None) -> Iterator[str]:
    name = benchmark.dataset
    if name is None:
        return
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise ConfigError(f"data_dir={str(data_dir)!r} is not a folder.")
        found = find_files(Path(data_dir), name, benchmark.config, benchmark.splits)
        if found is not None:
            for split in (one for one in benchmark.splits if one not in found.files):
                yield (
                    f"{name} lies in {data_dir} without its split {split}, which the examples are "
                    f"taken from: put it in {_place(benchmark, data_dir, split)}."
                )
            return
    if _is_cached(name):
        return
    place = _place(benchmark, data_dir, benchmark.splits[0])
    if benchmark.gated and not _has_token():
        yield (
            f"{name} is given to those only who agree to its terms: do so at "
            f"https://huggingface.co/datasets/{name}, then `hf auth login`; or put its files in "
            f"{place}."
        )
    elif not hub_is_reachable():
        folder = f"{'DATA_DIR' if data_dir is None else data_dir}/{short_name(name)}"
        yield (
            f"{name} is not on this machine and the hub is not reachable: put its files in "
            f"{place}, or fetch them elsewhere: `hf download {name} --repo-type dataset "
            f"--local-dir {folder}`."
        )


def _place(benchmark: Benchmark, data_dir: str | Path | None, split: str) -> str:
    folder = "DATA_DIR" if data_dir is None else str(data_dir)
    return f"{folder}/{usual_place(str(benchmark.dataset), benchmark.config, split)}"


def _is_cached(dataset: str) -> bool:
    home = _home()
    hub = os.environ.get("HF_HUB_CACHE") or home / "hub"
    ready = os.environ.get("HF_DATASETS_CACHE") or home / "datasets"
    return (Path(hub) / f"datasets--{dataset.replace('/', '--')}").is_dir() or (
        Path(ready) / dataset.replace("/", "___").lower()
    ).is_dir()


def _has_token() -> bool:
    return bool(os.environ.get("HF_TOKEN")) or (_home() / "token").is_file()


def _home() -> Path:
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
