"""The held-out sets of `eval` and `calibrate`: those given, else those that the run declared."""

import json
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from controlllm.checkpoint.mirror.remote import RemoteRun
from controlllm.checkpoint.training.checkpoints import checkpoint_step
from controlllm.common.errors import ConfigError
from controlllm.common.settings import value_at
from controlllm.common.storage.remote import is_remote, shown
from controlllm.common.text.progress import stage
from controlllm.common.text.readable import readable
from controlllm.common.text.secrets import redactions
from controlllm.common.text.yamls import parse_yaml
from controlllm.data import DataConfig, SourceConfig
from controlllm.data.examples.templates import is_template_file
from controlllm.train.config.config_io import read_yaml
from controlllm.train.config.run_config import RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "UNREAD",
    "Sets",
    "allow_packed",
    "as_numbers",
    "check_names",
    "config_of",
    "load_sets",
    "run_defaults",
    "tell_size",
]

log = logging.getLogger(__name__)

_WORTH_TELLING = 2**15
"""Tokens to compute, from which on the size of an evaluation is said."""

Sets = dict[str, Sequence[Any]]
Number = TypeVar("Number", int, float)

CONFIG = "config.yaml"

UNREAD = tuple(
    f"data.{name}"
    for name in (
        # Settings of training: held-out sets are read in order, once.
        *("train", "replay", "replay_share", "mix_by", "temperature", "stages"),
        *("packing_strategy", "group_by_length", "max_tokens_per_batch", "mixed_training"),
        *("shuffle", "shuffle_buffer", "num_workers", "prefetch_factor", "lanes"),
    )
)
"""What verbs that only measure do not read."""


def run_defaults(given: dict[str, Any], trusts: bool, repeatable: bool = True) -> dict[str, Any]:
    """Values of `data.*` from the run that the model belongs to, to lay below what is given.

    The run folder may be a stranger's: code and addresses that its config names, options for their
    servers, and places of this machine are left out, and told, unless the user trusts it.
    `repeatable` says whether the command has options to say them by, too.
    """
    values = config_of(given)
    if values is None:
        return {}
    try:
        data = asdict(RunConfig.from_dict(values).data)
    except ConfigError as error:
        raise ConfigError(f"config.yaml of {shown(given['model'])}: {error}") from error
    left = list(_leave_out(data, trusts, value_at(given, "data.plugins") is not None))
    if left:
        log.warning(
            "config.yaml of %s names %s, which is left out unless you %s this run folder: "
            "--trust_config true.",
            shown(given["model"]),
            "; ".join(name if repeatable else name.removeprefix("--") for name in left),
            "repeat it on the command line, or trust" if repeatable else "trust",
        )
    return {"data": {name: value for name, value in data.items() if f"data.{name}" not in UNREAD}}


def config_of(given: dict[str, Any]) -> Any:
    """`config.yaml` of the run that the model (a run, or a checkpoint of it) belongs to, if any."""
    if "model" not in given:
        return None
    model = str(given["model"])
    if not is_remote(model):
        places = (Path(model) / CONFIG, Path(model).parent / CONFIG)
        return next((read_yaml(place) for place in places if place.is_file()), None)
    address, _, name = model.rstrip("/").rpartition("/")
    inside = name == "best" or checkpoint_step(name) >= 0
    run = RemoteRun(address if inside else model, value_at(given, "load.storage_options"))
    content = run.read(CONFIG)
    return None if content is None else parse_yaml(content, f"{run.address}/{CONFIG}")


def _leave_out(data: dict[str, Any], trusts: bool, plugins_given: bool) -> Iterator[str]:
    """Take out of a stranger's settings what only their user may say; what that was."""
    for name in ("learn", "retain"):
        kept = []
        for source in data[name]:
            options = source["storage_options"]
            unknown = {key for key, value in options.items() if any(redactions(value))}
            taken = options.keys() - unknown if trusts else set()
            if options.keys() - taken:
                yield f"storage_options of {source['name']}"
            source["storage_options"] = {key: options[key] for key in taken}
            if trusts or not is_remote(source["path"]):
                kept.append(source)
            else:
                yield f"data.{name}: {shown(source['path'])}"
        data[name] = kept
    if trusts:
        return
    if data["plugins"] and not plugins_given:
        yield f"--data.plugins={shlex.quote(json.dumps(data['plugins']))}"
    if data["cache_dir"] is not None:
        yield f"--data.cache_dir={shlex.quote(data['cache_dir'])}"
    if is_template_file(data["chat_template"]):
        yield f"--data.chat_template={shlex.quote(data['chat_template'])}"
        data["chat_template"] = None
    data |= {"plugins": [], "cache_dir": None}


def check_names(sources: list[SourceConfig]) -> None:
    """Check that no two sets have one name (ConfigError)."""
    names = [source.name for source in sources]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{twice} name several sets (--files takes a file's name, beside the sets of the run); "
            "give each its own `name`: --data.learn '[{path: ..., name: ...}]'."
        )


def as_numbers(name: str, given: Any, kind: type[Number]) -> list[Number]:
    """One number, `a,b` on the command line, or a list in YAML.

    Raises:
        ConfigError: one is no such number; `name` is the option's.
    """
    parts = given if isinstance(given, list) else str(given).split(",")
    try:
        return [kind(part) for part in parts]
    except ValueError:
        whole = "whole " if kind is int else ""
        told = f"{name}={given!r} is no {whole}number, nor several with commas."
        raise ConfigError(told) from None


def load_sets(
    sources: Sequence[SourceConfig],
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: DataConfig,
    batch_size: int,
) -> Sets:
    """Tokenize and batch held-out sources, and let the model take packed batches.

    Raises:
        DataError: if a source is missing, empty or unreadable.
    """
    from controlllm.common.context import context_of
    from controlllm.data import eval_batches

    longest = context_of(model)
    if longest is not None and data.max_length > longest:
        log.warning(
            "data.max_length=%d is above the context of the model: it is measured in rows of %d.",
            data.max_length,
            longest,
        )
        data = replace(data, max_length=longest)
    allow_packed(model, data)
    sets: Sets = {}
    for source in sources:
        with stage(f"reading {source.name}"):
            sets[str(source.name)] = eval_batches(source, tokenizer, data, batch_size)
    return sets


def allow_packed(model: "PreTrainedModel", data: DataConfig) -> None:
    """Let a model take packed batches, if the data has any."""
    from controlllm.common.attention.attention import (
        packed_attention_for,
        register_packed_attention,
    )

    if data.packing:
        register_packed_attention()
        current = model.config.get_text_config(decoder=True)._attn_implementation
        model.set_attn_implementation(packed_attention_for(current))


def tell_size(sets: Sets, settings: int) -> None:
    """Announce what is going to be measured, if that may take a while.

    `settings` is how often the model computes each batch, beside its base.
    """
    tokens = {
        name: sum(batch["input_ids"].numel() for batch in batches) for name, batches in sets.items()
    }
    whole = sum(tokens.values())
    if whole * (settings + 1) < _WORTH_TELLING:
        return
    named = ", ".join(f"{name} ({count:,} tokens)" for name, count in tokens.items())
    total = f"{whole * (settings + 1):,} tokens to compute"
    print(
        f"Measuring {readable(named)}: {total}; the time left is shown from the first batch on.",
        file=sys.stderr,
    )
