import gzip
import json

import pytest

from controlllm.evaluate.suites import Suite, load_suite, prepare_tasks


@pytest.fixture
def pick():
    """`pick(suite, *names)`: a shipped suite with these of its benchmarks only."""

    def pick(suite, *names):
        found = load_suite(suite)
        return Suite(found.name, found.about, tuple(found.benchmark(name) for name in names))

    return pick


@pytest.fixture
def write_rows(tmp_path):
    """`write_rows(path, rows)`: a file below `tmp_path / "data"`, in the form of its suffix."""

    def write(name, rows):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            return path
        text = rows if isinstance(rows, str) else "".join(f"{json.dumps(row)}\n" for row in rows)
        if path.suffix == ".json" and not isinstance(rows, str):
            text = json.dumps(rows)
        content = text.encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    return write


@pytest.fixture
def load(tmp_path):
    """`load(suite, data_dir)`: what was prepared, and lm-eval's tasks of it by name."""
    import datasets
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()

    def load(suite, data_dir, include_path=()):
        prepared = prepare_tasks(suite, data_dir, tmp_path / "tasks", include_path)
        manager = TaskManager(include_path=[str(prepared.include_path)], include_defaults=False)
        loaded = manager.load(list(prepared.tasks.values()))
        assert {name for names in prepared.leaves.values() for name in names} == {*loaded["tasks"]}
        return prepared, loaded["tasks"]

    yield load
    datasets.enable_progress_bars()
