"""The ways to go on from an earlier run (`continue_by`), each with what a run config has to know.

`setup.ways` holds what they do; a way of your own is made known by
`controlllm.train.setup.ways.contract.register_way`.
"""

from dataclasses import dataclass

from controlllm.common.registry import Registry

__all__ = ["WAYS", "Way"]


@dataclass(frozen=True)
class Way:
    """The facts of one way to go on.

    Attributes:
        same_expansion: the same copies go on, so that a run can say no other expansion.
        copies_stages: every earlier stage is held as a frozen copy of what training changes.
        all_data: trains from the base, on the data of all earlier stages and of the run together;
            no stage is before it then.
    """

    same_expansion: bool = False
    copies_stages: bool = False
    all_data: bool = False


WAYS: Registry[Way] = Registry("continue_by")
"""Ways by the name used in the run config."""

for _name, _way in {
    "one": Way(same_expansion=True, copies_stages=True),
    "branch": Way(),
    "fold": Way(copies_stages=True),
    "joint": Way(all_data=True),
}.items():
    WAYS.register(_name)(_way)
