"""The held-out sets of `eval` and `calibrate`: those given, else those that the run declared."""

import json
import logging
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.cli.parsing import given_values
from controlllm.cli.terminal import Tracked
from controlllm.common.attention import packed_attention_for, register_packed_attention
from controlllm.data import DataConfig, SourceConfig, eval_batches
from controlllm.train.config import RunConfig
from controlllm.train.config_io import read_yaml

__all__ = ["Sets", "as_list", "load_sets", "run_defaults"]

log = logging.getLogger(__name__)

Sets = dict[str, Sequence[Any]]


def _run_config(path: str) -> RunConfig | None:
    """The config of the run that `path` (a run folder or a checkpoint of it) belongs to, if any."""
    folder = Path(path)
    for place in (folder, folder.parent):
        if (place / "config.yaml").is_file():
            return RunConfig.from_yaml(place / "config.yaml")
    return None


def run_defaults(argv: list[str]) -> dict[str, Any]:
    """Defaults of `--data.*` from the run that the first word names.

    All but `plugins`: they are programs, and the run folder may be a stranger's. Only the user, by
    his words or his own `--config`, says which are run.
    """
    run = _run_config(argv[0]) if argv and not argv[0].startswith("-") else None
    if run is None:
        return {}
    if run.data.plugins and not _gives_plugins(argv):
        log.warning(
            "The run used plugins, which are not run unless you say so: --data.plugins=%s",
            shlex.quote(json.dumps(run.data.plugins)),
        )
    return {"data": asdict(run.data) | {"plugins": []}}


def _gives_plugins(argv: list[str]) -> bool:
    """Whether the user's words or files say which plugins to run."""
    if any(re.match(r"--data(\.plugins\+?)?(=|$)", word) for word in argv):
        return True
    files = [read_yaml(path).get("data") for path in given_values(argv, "config")]
    return any(isinstance(data, dict) and "plugins" in data for data in files)


def as_list(value: str | list[str]) -> list[str]:
    """`a,b` on the command line, or a list in YAML."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def load_sets(
    sources: Sequence[SourceConfig],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    batch_size: int,
) -> Sets:
    """Tokenize and batch held-out sources, and let the model take packed batches.

    Raises:
        DataError: if a source is missing, empty or unreadable.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and data.max_length > longest:
        data = replace(data, max_length=longest)
    if data.packing:
        register_packed_attention()
        current = model.config.get_text_config(decoder=True)._attn_implementation
        model.set_attn_implementation(packed_attention_for(current))
    return {
        str(source.name): Tracked(
            eval_batches(source, tokenizer, data, batch_size), str(source.name)
        )
        for source in sources
    }
