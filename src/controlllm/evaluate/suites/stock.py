"""The tasks behind names: of lm-eval, of the folder `tasks/` here, and of folders of a user's.

lm-eval reads its YAMLs here without importing the functions that they name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.quiet import quiet_imports
from controlllm.common.registry import check_choice
from controlllm.common.text.yamls import parse_yaml

__all__ = ["OWN", "Leaf", "Tasks", "find_tasks", "folder_of_task", "read_template"]

OWN = Path(__file__).parent / "tasks"
"""Tasks that lm-eval has not, and templates that are laid over tasks."""

_FOLDERS = {
    "arc_challenge": "arc",
    "arc_challenge_chat": "arc",
    "arc_easy": "arc",
    "bbh_cot_fewshot": "bbh/cot_fewshot",
    "boolq": "super_glue/boolq",
    "ceval-valid": "ceval",
    "cmmlu": "cmmlu",
    "copa": "super_glue/copa",
    "gpqa_main_cot_zeroshot": "gpqa/cot_zeroshot",
    "gpqa_main_zeroshot": "gpqa/zeroshot",
    "gsm8k_cot": "gsm8k",
    "lambada_openai": "lambada",
    "leaderboard_math_hard": "leaderboard/math",
    "minerva_math_algebra": "minerva_math",
    "mmlu": "mmlu/default",
    "mmlu_continuation": "mmlu/continuation",
    "mmlu_cot_llama": "llama3/instruct/mmlu_cot",
    "mmlu_pro": "mmlu_pro",
    "openbookqa": "openbookqa",
    "piqa": "piqa",
    "winogrande": "winogrande",
}
"""Where lm-eval keeps tasks of our suites; to index all of its folders takes seconds."""
_DEEPEST = 10


@dataclass(frozen=True)
class Leaf:
    """One task of lm-eval that has documents of its own.

    Attributes:
        name: what lm-eval calls it.
        path: its YAML.
        values: what that says, with what it includes; functions are names.
        over: what a group says anew for it.
    """

    name: str
    path: Path
    values: Mapping[str, Any]
    over: Mapping[str, Any] = field(default_factory=dict)


def find_tasks(names: Sequence[str], folders: Sequence[str | Path] = ()) -> Any:
    """lm-eval's manager of tasks, which knows those of these names.

    It knows the tasks of the folders only, where they suffice, and then those that lie where names
    of our suites do: lm-eval's own index takes seconds.

    Args:
        names: of tasks, groups or tags.
        folders: with further task files (YAML).

    Raises:
        ConfigError: lm-eval is not installed, a folder is none, or a task is not known (with the
            nearest name).
    """
    try:
        with quiet_imports():
            from lm_eval.tasks import TaskManager

            from controlllm.evaluate.suites.quiet_harness import quiet_harness
    except ImportError as error:
        raise ConfigError(
            f"tasks need lm-eval ({error}): pip install 'controlllm[eval]'."
        ) from error
    for folder in folders:
        if not Path(folder).is_dir():
            raise ConfigError(f"include_path={str(folder)!r} is not a folder.")
    mine = [str(folder) for folder in folders]
    few = sorted({str(path) for name in names if (path := folder_of_task(name)) is not None})
    with quiet_harness():
        for paths, defaults in ((mine, False), ([*few, *mine], False), (mine, True)):
            manager = TaskManager(include_path=paths, include_defaults=defaults)
            if set(names) <= set(manager.all_tasks):
                break
    for name in names:
        check_choice("task", name, manager.all_tasks)
    return manager


class Tasks:
    """Finds tasks by name: in the user's folders, in ours, in lm-eval's."""

    def __init__(self, names: Sequence[str], include_path: Sequence[str | Path] = ()) -> None:
        """Index the folders that hold the named tasks (ConfigError: see `find_tasks`)."""
        self._index = find_tasks(names, [OWN, *include_path]).task_index

    def leaves(self, names: Sequence[str]) -> list[Leaf]:
        """The tasks behind names of tasks, groups and tags, each once.

        Raises:
            ConfigError: a name is not known (with the nearest), or a group contains itself.
        """
        found = {leaf.name: leaf for name in names for leaf in self._leaves(name, {}, 0)}
        return list(found.values())

    def means(self, name: str) -> list[dict[str, Any]]:
        """Which means over its tasks a group has; none if it is no group."""
        entry = self._index.get(name)
        listed = (entry.cfg or {}).get("aggregate_metric_list") if entry is not None else None
        return [dict(one) for one in ([listed] if isinstance(listed, dict) else listed or [])]

    def _leaves(self, item: Any, over: Mapping[str, Any], depth: int) -> Iterator[Leaf]:
        if depth > _DEEPEST:
            raise ConfigError(f"task {item!r} contains itself, or nests too deep.")
        if isinstance(item, Mapping):
            name = item.get("group", item.get("task"))
            if "group" in item and name not in self._index:
                yield from self._members(item, over, depth)
                return
            rest = {key: value for key, value in item.items() if key not in ("group", "task")}
            item, over = name, {**over, **rest}
        check_choice("task", item, self._index)
        entry = self._index[item]
        if entry.yaml_path is None:
            for name in sorted(entry.tags):
                yield from self._leaves(name, over, depth + 1)
        elif "group" in entry.cfg:
            yield from self._members(entry.cfg, over, depth)
        else:
            yield Leaf(item, Path(entry.yaml_path), entry.cfg, over)

    def _members(self, group: Mapping[str, Any], over: Mapping[str, Any], depth: int) -> Any:
        members = group.get("task") or []
        for member in [members] if isinstance(members, str) else members:
            yield from self._leaves(member, over, depth + 1)


def read_template(name: str) -> tuple[Path, dict[str, Any]]:
    """A file of `tasks/` and what it says, with what it includes.

    Raises:
        ConfigError: there is none (with the nearest name).
    """
    paths = {path.stem: path for path in OWN.glob("*.yaml")}
    check_choice("template", name, paths)
    path = paths[name]
    values = parse_yaml(path.read_bytes(), str(path))
    if "include" in values:
        values = read_template(Path(values.pop("include")).stem)[1] | values
    return path, values


def folder_of_task(name: str) -> Path | None:
    """The folder of lm-eval that a task lies in, if it is of our suites or named like it."""
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "tasks" / _FOLDERS.get(name, name)
    return folder if folder.is_dir() else None
