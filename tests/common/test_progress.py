import time

from controlllm.common.text import progress as module
from controlllm.common.text.progress import progress, show_progress


def test_time_left_is_told_once_something_is_done(monkeypatch, capsys):
    """A first kilobyte of many megabytes says nothing of the time that all of them take."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(module, "_shown", False)
    show_progress(True)
    with progress("writing", "MB", total=7) as line:
        now += 12.0
        line.show(0.001)
        now += 30.0
        line.show(3.5)
    assert capsys.readouterr().err.splitlines() == [
        "writing: 0 of 7 MB",
        "writing: 4 of 7 MB, 42 s left",
    ]
