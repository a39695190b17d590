"""The words of a command, by the type hints of its options: nested values, nothing said twice.

--training.max_steps 7   --training.max_steps=7   --overwrite   --data.train+ '{path: A}'
"""

import dataclasses
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from controlllm.common.errors import ConfigError
from controlllm.common.settings import near_setting, setting_names
from controlllm.common.text.yamls import parse_yaml

__all__ = ["Words", "hint_of", "is_required", "is_several", "parse_words"]

OWN_OPTIONS = ("config", "help", "print_config", "trust_config")
_SWITCHES = {"help", "print_config"}
_TRUE_OR_FALSE = re.compile(r"true|false|yes|no|on|off|null", re.IGNORECASE)
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d*)?([eE][-+]?\d+)?")
_ANY = (str, int, float, bool, type(None), list, dict)


@dataclass
class Words:
    """What the words of a command say.

    Attributes:
        values: nested settings.
        appended: dotted names of lists, and what is appended to each.
        files: YAML files, in their order.
        own: options of the parser itself (`help`, `print_config`, `trust_config`).
    """

    values: dict[str, Any] = field(default_factory=dict)
    appended: dict[str, list[Any]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    own: dict[str, bool] = field(default_factory=dict)


def parse_words(cls: type, argv: list[str]) -> Words:
    """Read the words after a verb.

    Raises:
        ConfigError: an option is not known (with the nearest), has no value, or is given twice.
    """
    words, names = Words(), sorted(setting_names(cls))
    places = [f.name for f in dataclasses.fields(cls) if is_required(f)]
    given: set[str] = set()
    several = [name for name in places if is_several(hint_of(cls, name))]
    listed: list[str] = []
    for option, value in _pairs(cls, argv, names):
        if option is None:
            place = next((name for name in places if name not in given), None)
            if place is None:
                raise ConfigError(f"{value!r} is one word too many; options begin with --.")
            if place in several:
                listed.append(value)
                continue
            option = place
        _take(cls, words, given, option, value)
    if listed:
        (place,) = several
        if place in given:
            raise ConfigError(f"--{place} is given twice: {listed[0]!r}; keep one of them.")
        words.values[place] = listed
    return words


def hint_of(cls: type, name: str) -> Any:
    """The type hint of a dotted setting; `Any` below a dict.

    Raises:
        ConfigError: it lies in a list, which is given as a whole.
    """
    hint: Any = cls
    parts = name.split(".")
    for i, part in enumerate(parts):
        options = _options(hint)
        inner = next((o for o in options if dataclasses.is_dataclass(o)), None)
        if inner is not None and part in get_type_hints(inner):
            hint = get_type_hints(inner)[part]
        elif any((get_origin(o) or o) in (dict, Any) for o in options):
            items = [get_args(o)[1] for o in options if get_origin(o) is dict]
            hint = items[0] if items and i == len(parts) - 1 else Any
        else:
            above = ".".join(parts[:i])
            if not any(get_origin(o) is list for o in options):
                raise ConfigError(f"--{name} is not an option: {above} holds no settings.")
            raise ConfigError(
                f"--{name}: {above} is a list; give it as a whole (--{above} '[...]'), or append "
                f"to it (--{above}+ '{{...}}')."
            )
    return hint


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def is_several(hint: Any) -> bool:
    """Whether a place takes all words that are left, as a list of texts."""
    return get_origin(hint) is list and get_args(hint) == (str,)


def _pairs(cls: type, argv: list[str], names: list[str]) -> Iterator[tuple[str | None, str]]:
    """Options with their values; words without an option with None."""
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--"):
            yield None, word
            continue
        name, equals, value = word[2:].partition("=")
        _check_name(name.removesuffix("+"), names)
        if not equals:
            value = _value_after(cls, name, rest)
        yield name, value


def _check_name(name: str, names: list[str]) -> None:
    """Refuse what is no setting, nor lies inside one (`--load.storage_options.user`)."""
    leaves = [one for one in names if not any(other.startswith(f"{one}.") for other in names)]
    if name in OWN_OPTIONS or name in names:
        return
    if not any(name.startswith(f"{leaf}.") for leaf in leaves):
        raise ConfigError(f"--{name} is not an option.{near_setting(name, names, '--')}")


def _value_after(cls: type, name: str, rest: list[str]) -> str:
    """The word after an option, taken from the rest; a switch may have none."""
    following = rest[0] if rest and not rest[0].startswith("--") else None
    if name in OWN_OPTIONS:
        switch = name != "config"
    else:
        switch = set(_options(hint_of(cls, name.removesuffix("+")))) <= {bool, type(None)}
    if name in _SWITCHES or (switch and not _TRUE_OR_FALSE.fullmatch(following or "")):
        return "true"
    if following is None:
        raise ConfigError(f"--{name} needs a value (a value that begins with --: --{name}=...).")
    return rest.pop(0)


def _take(cls: type, words: Words, given: set[str], option: str, value: str) -> None:
    name = option.removesuffix("+")
    if name == "config":
        words.files.append(value)
        return
    if option in given:
        raise ConfigError(f"--{option} is given twice; keep one of them.")
    if name in OWN_OPTIONS:
        given.add(option)
        taken = _value_of(bool, value, f"--{name}")
        if not isinstance(taken, bool):
            raise ConfigError(f"--{name}={value}: true or false is expected.")
        words.own[name] = taken
        return
    hint = hint_of(cls, name)
    if option.endswith("+"):
        words.appended.setdefault(name, []).extend(_items(hint, value, name))
        return
    given.add(option)
    taken = _value_of(hint, value, f"--{name}")
    if dataclasses.is_dataclass(hint) and not isinstance(taken, Mapping):
        raise ConfigError(
            f"--{name} {value}: {name} is a section; give settings of it (--{name}.NAME VALUE), or "
            f"a YAML file that has `{name}:` by --config."
        )
    _put(words.values, name.split("."), taken, name)


def _put(values: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    """Put a value at its place; sections may come in parts, but no setting twice."""
    *sections, last = path
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--{name}: {section} is given twice; keep one of them.")
    old = values.get(last)
    if isinstance(old, dict) and isinstance(value, Mapping):
        for key, inner in value.items():
            _put(old, [str(key)], inner, f"{name}.{key}")
    elif last in values:
        raise ConfigError(f"--{name} is given twice; keep one of them.")
    else:
        values[last] = value


def _items(hint: Any, text: str, name: str) -> list[Any]:
    """What `--name+` appends: one item, or a list of them."""
    lists = [option for option in _options(hint) if (get_origin(option) or option) is list]
    if not lists:
        raise ConfigError(f"--{name}+ appends to a list, and {name} is none; use --{name}.")
    item = (get_args(lists[0]) or (Any,))[0]
    value = _value_of(lists[0] if text.lstrip().startswith("[") else item, text, f"--{name}+")
    return value if isinstance(value, list) else [value]


def _value_of(hint: Any, text: str, name: str) -> Any:
    """A word as the hint can take it: YAML, but texts as they stand.

    Where both a text and something else will do, brackets, numbers, `true` and `null` are YAML.
    """
    options = _options(hint)
    if Any in options:
        options = _ANY
    kinds = {get_origin(option) or option for option in options}
    if not kinds & {str, Literal}:
        return parse_yaml(text, name)
    if text == "null" and type(None) in kinds:
        return None
    brackets = {"[": list, "{": dict}.get(text.lstrip()[:1])
    number = kinds & {int, float} and _NUMBER.fullmatch(text)
    switch = bool in kinds and text in ("true", "false")
    return parse_yaml(text, name) if brackets in kinds or number or switch else text


def _options(hint: Any) -> tuple[Any, ...]:
    """The hints that a union allows, or the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
