"""`controlllm data`: look at the data of a run, or tokenize it ahead; no model is loaded."""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

from controlllm.cli.kit.terminal import tell_log
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.registry import check_choice
from controlllm.data import SourceConfig
from controlllm.train.config.run_config import RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["COMMANDS", "groups", "load_run_tokenizer", "run"]

COMMANDS = {
    "inspect": "rows, tokens, lengths, what is left out, samples with their mask, and the mix",
    "prepare": "tokenize every source once; `train` and `eval` then read the tokens by themselves",
}


def run(argv: list[str]) -> None:
    """Run `inspect` or `prepare`; both take the run file that `train` takes."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return
    check_choice("data command", argv[0], COMMANDS)
    import_module(f"controlllm.cli.data_{argv[0]}").run(argv[1:])


def groups(run: RunConfig) -> Iterator[tuple[str, SourceConfig]]:
    """Every source of a run with its group: train, replay, learn, retain.

    Raises:
        ConfigError: there is nothing to learn from.
    """
    if not run.data.train:
        raise ConfigError("data.train names no source; give at least one to learn from.")
    for group in ("train", "replay", "learn", "retain"):
        for source in getattr(run.data, group):
            yield group, source


def load_run_tokenizer(run: RunConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer and chat template that `train` would use; the run's plugins are run.

    Raises:
        ConfigError: neither a model nor a tokenizer is named, or a plugin fails.
        CheckpointError: there is no tokenizer where the run file says.
    """
    from controlllm.checkpoint import find_tokenizer
    from controlllm.data import resolve_chat_template
    from controlllm.data.loader.plugins import load_plugins

    tell_log()  # what is read and cached, as it happens
    model = run.model
    name = model.tokenizer_name_or_path or model.model_name_or_path
    if name is None:
        raise ConfigError(
            "model.model_name_or_path is not set; name the model whose tokenizer is used, or "
            "set model.tokenizer_name_or_path."
        )
    load_plugins(run.data)
    try:
        tokenizer = find_tokenizer(name, model)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} (`data` needs the tokenizer only: model.tokenizer_name_or_path names it.)"
        ) from error
    tokenizer.chat_template = resolve_chat_template(run.data.chat_template, tokenizer)
    return tokenizer


def _help() -> str:
    commands = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    return (
        "usage: controlllm data inspect RUN.yaml [--rows N] [--samples K] [--output FILE.json]\n"
        "       controlllm data prepare RUN.yaml\n\n"
        "Look at the data of a run file, or tokenize it ahead. No model is loaded.\n\n"
        f"commands:\n{commands}\n\n"
        "Both take every setting of `train`, too: see `controlllm data inspect --help`."
    )
