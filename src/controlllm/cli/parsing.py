"""From words and YAML to one typed options object, by jsonargparse.

Order: defaults of the dataclass, then a preset, then YAML files, then words on the command line;
what comes later wins. A wrong name is answered with the nearest right one.
"""

import dataclasses
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeVar, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from controlllm.common.errors import ConfigError
from controlllm.common.registry import nearest_name
from controlllm.train.config_io import build, merge, read_yaml

__all__ = ["given_value", "given_values", "parse_options"]

T = TypeVar("T")
_OWN_OPTIONS = {"config", "help", "print_config"}


def parse_options(
    cls: type[T], argv: list[str], verb: str, defaults: Mapping[str, Any] | None = None
) -> T:
    """Parse the words of one command.

    Args:
        cls: dataclass of the options, each field with its docstring; fields without a default are
            positional.
        argv: the words after the verb.
        verb: the command, for `--help`.
        defaults: nested values that take the place of the dataclass's own defaults.

    Raises:
        ConfigError: for an unknown name (with the nearest), a wrong value or a missing one.
        SystemExit: after `--help` and `--print_config`.
    """
    parser = _parser(cls, verb)
    names = sorted(_setting_names(cls))
    for path in given_values(argv, "config"):
        _check_names(cls, read_yaml(path), str(path), names)
    _check_words(argv, names)
    try:
        if defaults:
            parser.set_defaults(_flat(cls, defaults))
        values = parser.parse_args(_with_values(cls, argv)).as_dict()
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_readable(str(error), names, verb)) from error
    values = {key: value for key, value in values.items() if key not in _OWN_OPTIONS}
    return build(cls, _plain(values))


def given_value(argv: list[str], key: str) -> Any:
    """The value of a top-level setting as the user gave it: the last word, else the last YAML."""
    values: dict[str, Any] = {}
    for path in given_values(argv, "config"):
        values = merge(values, read_yaml(path))
    return next(reversed(given_values(argv, key)), values.get(key))


def given_values(argv: list[str], key: str) -> list[str]:
    """All values given by `--key value` and `--key=value`."""
    apart = [(i, value) for i, (word, value) in enumerate(pairwise(argv)) if word == f"--{key}"]
    joined = [
        (i, word.split("=", 1)[1]) for i, word in enumerate(argv) if word.startswith(f"--{key}=")
    ]
    return [value for _, value in sorted(apart + joined)]


def _parser(cls: type, verb: str) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    required = [field.name.upper() for field in dataclasses.fields(cls) if _is_required(field)]
    parser = ArgumentParser(
        prog=f"controlllm {verb}",
        usage=" ".join(["controlllm", verb, *required, "[--config FILE.yaml] [options]"]),
        description=cls.__doc__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings.")
    parser.add_class_arguments(cls, as_group=False, as_positional=True)
    return parser


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _check_words(argv: list[str], names: list[str]) -> None:
    """Refuse `--names` that are no settings, nor lie inside one (`--data.train.path`)."""
    leaves = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    for word in argv:
        name = word[2:].split("=", 1)[0].removesuffix("+").removesuffix(".help")
        if not word.startswith("--") or name in _OWN_OPTIONS or name in names:
            continue
        if not any(name.startswith(f"{leaf}.") for leaf in leaves):
            raise ConfigError(f"--{name} is not an option.{_near(name, names, '--')}")


def _with_values(cls: type, argv: list[str]) -> list[str]:
    """The words, with `true` after each `--switch` that has no value of its own."""
    switches = {f"--{name}" for name, hint in get_type_hints(cls).items() if hint is bool}
    words: list[str] = []
    for word, following in zip(argv, [*argv, "--"][1:], strict=True):
        words.append(word)
        if word in switches and following.startswith("--"):
            words.append("true")
    return words


def _check_names(
    cls: type, values: Mapping[str, Any], file: str, names: list[str], prefix: str = ""
) -> None:
    """Refuse keys of a YAML file that are not fields of the dataclass they fill."""
    hints = get_type_hints(cls)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise ConfigError(f"{file}: {name} is not a setting.{_near(name, names)}")
        inner = _dataclass_in(hints[key])
        for item in value if isinstance(value, list) else [value]:
            if inner is not None and isinstance(item, Mapping):
                _check_names(inner, item, file, names, f"{name}.")


def _setting_names(cls: type, prefix: str = "") -> set[str]:
    """Dotted names of all settings: sections, and fields of what lists hold, included."""
    names = set()
    for name, hint in get_type_hints(cls).items():
        names.add(prefix + name)
        inner = _dataclass_in(hint)
        if inner is not None:
            names |= _setting_names(inner, f"{prefix}{name}.")
    return names


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that a hint is or contains (`list[SourceConfig]`), if any."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return next(filter(None, (_dataclass_in(inner) for inner in get_args(hint))), None)


def _near(name: str, names: list[str], mark: str = "") -> str:
    """The nearest right name, as a sentence; the last part decides if the whole is like none."""
    near = nearest_name(name, names)
    if near is None:
        leaves = {known.rsplit(".", 1)[-1]: known for known in names}
        near = leaves.get(nearest_name(name.rsplit(".", 1)[-1], leaves) or "")
    return f" Did you mean {mark}{near}?" if near else " See --help for all of them."


def _readable(message: str, names: list[str], verb: str) -> str:
    """The parser's message on one line, with the nearest name where a name was wrong."""
    text = " ".join(message.split()).rstrip(".")
    wrong = re.search(r"(?:[Oo]ption|Key) '([\w.]+)' is not (?:accepted|expected)", text)
    choice = re.search(
        r'[Kk]ey "([\w.]+)".*typing\.Literal\[(.+?)\].*?(?:Got|Given) value: (\S+)', text
    )
    if choice is not None:
        return f"{choice[1]}={choice[3]}; allowed: {choice[2]}."
    if wrong is None:
        return f"{text}. See `controlllm {verb} --help`."
    where = re.search(r'[Kk]ey "([\w.]+)"', text)
    name = f"{where[1]}.{wrong[1]}" if where else wrong[1]
    return f"{name} is not a setting.{_near(name, names)}"


def _flat(cls: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with dotted keys down to the settings of nested dataclasses."""
    flat: dict[str, Any] = {}
    hints = get_type_hints(cls)
    for key, value in values.items():
        if dataclasses.is_dataclass(hints.get(key)) and isinstance(value, Mapping):
            flat |= _flat(hints[key], value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _plain(value: Any) -> Any:
    """The parser's namespaces as dicts and strings."""
    from jsonargparse import Namespace

    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not str(k).startswith("__")}
    return [_plain(item) for item in value] if isinstance(value, list) else value
