"""YAML that somebody else may have written: read within bounds, and nothing in it said twice.

Only plain values are made (no tags of Python). Size, depth and the number of values, aliases
expanded, are bounded before a value is made, so that no file of a few lines fills the memory.
"""

from collections.abc import Iterator
from typing import Any

import yaml

from controlllm.common.errors import ConfigError

__all__ = ["MAX_BYTES", "parse_yaml"]

MAX_BYTES = 2**20
MAX_VALUES = 50_000
MAX_DEPTH = 50
_CHARACTERS = 100
"""So many of a text count as a further value."""


def parse_yaml(content: bytes | str, name: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        ConfigError: it is no YAML, too large, too deep or too many values, or a key is given twice.
    """
    text = _text(content, name)
    try:
        _check_events(yaml.parse(text, yaml.SafeLoader), name)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Measure(name).of(node, "")
        return loader.construct_document(node)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:
        raise ConfigError(f"{name} is not valid YAML: {' '.join(str(error).split())}.") from error


def _text(content: bytes | str, name: str) -> str:
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{name} has more than {MAX_BYTES // 2**20} MiB; no settings are so long."
        )
    if isinstance(content, str):
        return content
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name} is not valid YAML: it is no text in UTF-8 (byte {error.start})."
        ) from error


def _check_events(events: Iterator[yaml.Event], name: str) -> None:
    """Bound what is written, before anything recursive looks at it."""
    depth = count = 0
    for event in events:
        count += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        _bound(name, count, depth, event.start_mark)


def _bound(name: str, count: int, depth: int, mark: Any) -> None:
    if depth > MAX_DEPTH:
        raise ConfigError(f"{name}, line {mark.line + 1}: nested deeper than {MAX_DEPTH} levels.")
    if count > MAX_VALUES:
        raise ConfigError(
            f"{name}, line {mark.line + 1}: more than {MAX_VALUES:,} values, aliases (*name) "
            "expanded; no settings have so many."
        )


class _Measure:
    """Counts values with aliases expanded, and looks for keys given twice."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.known: dict[int, tuple[int, int]] = {}
        self.open: set[int] = set()

    def of(self, node: yaml.Node, where: str) -> tuple[int, int]:
        """How many values a node stands for, and how deep they lie."""
        if not isinstance(node, yaml.CollectionNode):
            return 1 + len(node.value) // _CHARACTERS, 0
        if id(node) in self.open:
            raise ConfigError(f"{self.name}: {where} contains itself (an alias within its anchor).")
        if id(node) not in self.known:
            self.open.add(id(node))
            sizes = [self.of(inner, path) for inner, path in self._inner(node, where)]
            self.open.discard(id(node))
            count = 1 + sum(size for size, _ in sizes)
            depth = 1 + max((depth for _, depth in sizes), default=0)
            _bound(self.name, count, depth + len(self.open), node.start_mark)
            self.known[id(node)] = count, depth
        return self.known[id(node)]

    def _inner(self, node: yaml.CollectionNode, where: str) -> Iterator[tuple[yaml.Node, str]]:
        if isinstance(node, yaml.SequenceNode):
            yield from ((item, f"{where}[{i}]") for i, item in enumerate(node.value))
            return
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            path = f"{where}.{key.value}" if where else str(key.value)
            known, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if known in lines:
                raise ConfigError(
                    f"{self.name}, line {line}: {path} is given twice (first in line "
                    f"{lines[known]}); keep one of them."
                )
            lines[known] = line
            yield key, path
            yield value, path
