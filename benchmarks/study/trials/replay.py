"""Real old text among what is trained on, for arms that are told apart as having it."""

from collections.abc import Mapping
from typing import Any

from benchmarks.study import trial
from benchmarks.study.plan import Cell

__all__ = ["Trial"]


class Trial(trial.Trial):
    """`kept`: the kept text whose other part is replayed; how much the arm's run says."""

    def __init__(self, kept: str = "tinystories") -> None:
        self.kept = kept

    def values(self, cell: Cell, files: Mapping[str, str]) -> dict[str, Any]:
        return {"data": {"replay": [{"path": files[f"{self.kept}-replay"]}]}}
