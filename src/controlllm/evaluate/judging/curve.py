"""The dial's curve as `calibrate` has written it, with its certificates."""

from pathlib import Path
from typing import Annotated, Any, Required, TypedDict

from controlllm.common.storage.files import read_json
from controlllm.common.storage.schema import OPEN, check_record

__all__ = ["read_calibration"]


class _Loss(TypedDict):
    base_loss: float
    loss: float


_Alpha = float | dict[str, float | None] | None
"""A setting; of several sidecars one for each name."""


class _Point(TypedDict):
    alpha: _Alpha
    learn: dict[str, Annotated[_Loss, OPEN]]
    retain: dict[str, Annotated[_Loss, OPEN]]
    learn_loss: float
    forgetting: float


class _Certificate(TypedDict):
    kl: float
    upper: float | None
    sequences: int
    tokens: int


class _Calibration(TypedDict, total=False):
    dial: Required[str]
    max_forgetting: Required[float]
    chosen: Required[_Alpha]
    points: Required[list[Annotated[_Point, OPEN]]]
    certificates: dict[str, Annotated[_Certificate, OPEN]]


def read_calibration(folder: Path) -> dict[str, Any] | None:
    """The curve of a run, or that in a folder itself; None where there is none.

    Raises:
        CheckpointError: a field of it does not fit.
    """
    for path in (folder / "calibrated" / "calibration.json", folder / "calibration.json"):
        if path.is_file():
            found = check_record(read_json(path), Annotated[_Calibration, OPEN], path)
            return dict(found)
    return None
