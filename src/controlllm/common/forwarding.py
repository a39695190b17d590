"""A module in the place of another one: attributes that it lacks are the other's."""

from typing import Any, ClassVar

from torch import nn

__all__ = ["Forwarding"]


class Forwarding(nn.Module):
    """Attributes that it does not have are those of one of its submodules."""

    forwards_to: ClassVar[str]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == self.forwards_to:  # not yet set: asking it for itself would never end
                raise
            return getattr(getattr(self, self.forwards_to), name)
