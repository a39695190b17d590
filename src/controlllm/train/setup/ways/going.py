"""What each way does, by its name."""

from controlllm.train.setup.ways.branch import BRANCH
from controlllm.train.setup.ways.contract import GOINGS
from controlllm.train.setup.ways.fold import FOLD
from controlllm.train.setup.ways.one import ONE

__all__: list[str] = []

for _name, _going in {"one": ONE, "branch": BRANCH, "fold": FOLD}.items():
    GOINGS.register(_name)(_going)
