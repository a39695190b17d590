"""The expansion of a run that goes on from another one: what it says, beside what is recorded.

Said is what the run gives, whatever the default is, and what its preset gives; what is given counts
more. That no block is named (null) says nothing.
"""

import logging
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.expansion import ExpansionConfig
from controlllm.expansion.method.unread import without_unread
from controlllm.train.config.presets import preset_values
from controlllm.train.config.run_config import RunConfig

__all__ = ["goes_on", "laid_over"]

log = logging.getLogger(__name__)

_POSITIONS = {"layers", "num_blocks"}


def goes_on(run: RunConfig, recorded: ExpansionConfig) -> ExpansionConfig:
    """That of the same copies; another one cannot be had.

    Raises:
        ConfigError: the run says another one. (Values of its preset are told and left out.)
    """
    of_preset = _of_preset(run)
    for name in _said(run):
        value, old = getattr(run.expansion, name), getattr(recorded, name)
        if value == old:
            continue
        what = f"expansion.{name}={value!r}"
        if f"expansion.{name}" not in run.given and of_preset.get(name) == value:
            log.warning(
                "%s of the preset %r is not used: that of %s is %r, and continue_by=%s goes on "
                "with the same copies.",
                *(what, str(run.preset), run.continue_from, old, run.continue_by),
            )
            continue
        raise ConfigError(
            f"{what}, but that of {run.continue_from} is {old!r}, and continue_by="
            f"{run.continue_by} goes on with the same copies; leave it out, or take "
            "continue_by=fold, which makes new ones."
        )
    return recorded


def laid_over(run: RunConfig, recorded: ExpansionConfig) -> ExpansionConfig:
    """That of new copies: as the earlier ones but for what the run says."""
    said = {name: getattr(run.expansion, name) for name in _said(run)}
    if said.keys() & _POSITIONS:
        said = dict.fromkeys(_POSITIONS) | said
    laid = replace(recorded, **({"dial": None, "mean_alpha": None} | said))
    # What was recorded and is not read beside what is said is nobody's saying.
    return replace(without_unread(laid), **said)


def _said(run: RunConfig) -> Iterator[str]:
    """The fields of the expansion that the run says."""
    of_preset, default = _of_preset(run), ExpansionConfig()
    for field in fields(ExpansionConfig):
        name, value = field.name, getattr(run.expansion, field.name)
        if name == "mean_alpha" or (name in _POSITIONS and value is None):
            continue
        named = f"expansion.{name}" in run.given or name in of_preset
        # In Python it may be that only the value tells; and a method settles some.
        if named or value != getattr(default, name):
            yield name


def _of_preset(run: RunConfig) -> dict[str, Any]:
    values = {} if run.preset is None else preset_values(run.preset)
    return dict(values.get("expansion", {}))
