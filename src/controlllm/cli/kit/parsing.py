"""From words and YAML to one typed options object.

Order: defaults of the dataclass, then a preset, then what a run folder brings, then YAML files in
their order, then the words, wherever they stand. What comes later wins; dicts are merged, lists are
replaced (`--name+` appends). A wrong name is answered with the nearest right one.

Values become settings by the type hints alone (`train.config_io.build`); jsonargparse writes the
help.
"""

import json
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

import yaml

import controlllm
from controlllm.cli.kit.terminal import quiet_progress_bars, speaks
from controlllm.cli.kit.words import Words, hint_of, is_required, is_several, parse_words
from controlllm.common.errors import ConfigError
from controlllm.common.facts import describe_facts, settings_of
from controlllm.common.settings import RUNS_CODE, require_settings, settings_with, value_at
from controlllm.common.text.secrets import hidden, redacted
from controlllm.train.config.config_io import build, merge, read_yaml, require_secrets

__all__ = ["Below", "as_list", "parse_options"]

T = TypeVar("T")

Below = Callable[[dict[str, Any], bool], Mapping[str, Any]]
"""What the user said, and whether files of others are trusted -> values to lay below it."""

TRUST = "--trust_config true"


def as_list(value: str | list[str]) -> list[str]:
    """`a,b` on the command line, or a list in YAML."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def parse_options(
    cls: type[T],
    argv: list[str],
    verb: str,
    below: Below | None = None,
    make: Callable[[dict[str, Any]], T] | None = None,
    unread: Collection[str] = (),
    models: bool = True,
) -> T:
    """Parse the words of one command.

    Args:
        cls: dataclass of the options, each field with its docstring; fields without a default are
            positional.
        argv: the words after the verb.
        verb: the command, for `--help`.
        below: values that take the place of the dataclass's own defaults.
        make: makes the options of nested values; by default `build`.
        unread: settings of the dataclass that this command does not read.
        models: whether the command loads models: `transformers`, which takes seconds to import, is
            told of expanded ones once all words are understood.

    Raises:
        ConfigError: for an unknown name (with the nearest), a wrong value or a missing one, a
            setting that is given twice, or code that only a file asks for.
        SystemExit: after `--help` and `--print_config`.
    """
    words = parse_words(cls, argv)
    require_settings(cls, words.values, "the command line")
    if words.own.get("help"):
        _print_help(cls, verb, unread)
        raise SystemExit(0)
    trusts = words.own.get("trust_config", False)
    files = [(path, _read(cls, path)) for path in words.files]
    if not trusts:
        _require_consent(cls, files, words)
    layers = [values for _, values in files] + [words.values]
    for name in unread:
        if name in words.appended or any(value_at(layer, name) is not None for layer in layers):
            raise ConfigError(f"{name} is not read by `{verb}`; leave it out.")
    if below is not None:
        layers.insert(0, dict(below(_laid(layers)[0], trusts)))
    values, replaced = _laid(layers)
    lists = dict.fromkeys([*replaced, *words.appended])
    for name, items in words.appended.items():
        _append(values, name, items)
    required = [field.name for field in fields(cls) if is_required(field)]  # type: ignore[arg-type]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"{verb} needs {' and '.join(missing)}. See `controlllm {verb} --help`.")
    options = make(values) if make is not None else build(cls, values)
    _tell_lists(values, lists)
    if words.own.get("print_config"):
        plain = options.to_dict() if hasattr(options, "to_dict") else asdict(options)  # type: ignore[call-overload]
        print(yaml.safe_dump(redacted(plain), sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(0)
    if models:
        controlllm.register()
        quiet_progress_bars()
    return options


def _read(cls: type, path: str) -> dict[str, Any]:
    values = read_yaml(path)
    require_secrets(values, path)
    if "trust_config" in values:
        raise ConfigError(f"{path}: trust_config counts on the command line only ({TRUST}).")
    require_settings(cls, values, path)
    return values


def _laid(layers: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """All layers in one, and the dotted names of lists that replaced another one."""
    values: dict[str, Any] = {}
    replaced: list[str] = []
    for layer in layers:
        replaced += _lists_over(values, layer)
        values = merge(values, layer)
    return values, replaced


def _require_consent(cls: type, files: list[tuple[str, dict[str, Any]]], words: Words) -> None:
    """A file may name code; that it runs is for the words of the command to say."""
    for name in settings_with(cls, RUNS_CODE):
        said = value_at(words.values, name) is not None
        for file, values in files:
            value = value_at(values, name)
            if value and not said:
                repeated = value if isinstance(value, str) else json.dumps(value)
                raise ConfigError(
                    f"{file} asks to run code: {name}. A file only names it; if you know what it "
                    f"runs, say it on the command line, too: --{name} {shlex.quote(repeated)}, or "
                    f"{TRUST} for all that files ask for."
                )


def _append(values: dict[str, Any], name: str, items: list[Any]) -> None:
    *sections, last = name.split(".")
    for section in sections:
        values[section] = dict(values.get(section) or {})
        values = values[section]
    old = values.get(last) or []
    values[last] = [*(old if isinstance(old, list) else [old]), *items]


def _lists_over(base: Mapping[str, Any], over: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for key, value in over.items():
        old = base.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            yield from _lists_over(old, value, f"{where}{key}.")
        elif isinstance(value, list) and old and old != value:
            yield f"{where}{key}"


def _tell_lists(values: dict[str, Any], names: Mapping[str, Any]) -> None:
    """Print what became of lists that were replaced or grew; numbers speak for themselves."""
    for name in names if speaks() else ():
        items = value_at(values, name) or []
        if not any(isinstance(item, int | float) for item in items):
            print(f"{name}: {', '.join(map(_item_text, items)) or 'none'}", file=sys.stderr)


def _item_text(item: Any) -> str:
    if not isinstance(item, Mapping):
        return hidden(item)
    path = hidden(item.get("path", item))
    return f"{item['name']} ({path})" if item.get("name") else path


def _print_help(cls: type, verb: str, unread: Collection[str]) -> None:
    from argparse import SUPPRESS

    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    required = [
        field.name.upper() + (" ..." if is_several(hint_of(cls, field.name)) else "")
        for field in fields(cls)
        if is_required(field)
    ]
    parser = ArgumentParser(
        prog=f"controlllm {verb}",
        usage=" ".join(["controlllm", verb, *required, "[--config FILE.yaml] [options]"]),
        description=cls.__doc__,
        print_config=None,  # It would promise flags that nothing reads.
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        default=SUPPRESS,
        help="Print the whole configuration, and exit.",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings.")
    if any(settings_with(cls, RUNS_CODE)):
        parser.add_argument(
            "--trust_config",
            type=bool,
            default=False,
            help="Run the code that YAML files name, and use addresses, storage options, cache "
            "folders and template files of a run folder; only here, never in a file.",
        )
    parser.add_class_arguments(cls, as_group=False, as_positional=True)
    facts = {name: describe_facts(field) for name, field in settings_of(cls)}
    for action in parser._actions:
        if not action.option_strings and is_several(hint_of(cls, action.dest)):
            action.metavar = f"{action.dest} ..."
        if action.dest in unread:
            action.help = SUPPRESS
        elif facts.get(action.dest):
            action.help = f"{action.help} {facts[action.dest]}"
    parser.print_help()
