"""Where the files of a dataset may lie in a folder of a user's, and which are there.

The usual layout is `DATA_DIR/<dataset>[/<config>]/<split>.jsonl`, `<dataset>` being the last part
of its name on the hub: what `hf download NAME --repo-type dataset --local-dir DATA_DIR/<dataset>`
writes is read as it is. `KNOWN` holds further layouts of single datasets.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from controlllm.common.errors import ConfigError

__all__ = [
    "KNOWN",
    "SAME",
    "SUFFIXES",
    "Found",
    "Layout",
    "find_files",
    "short_name",
    "usual_place",
]

SUFFIXES = {
    ".jsonl": "json",
    ".json": "json",
    ".jsonl.gz": "json",
    ".json.gz": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
}
"""Endings of data files, and what of the package datasets reads them."""
_ROOTS = ("", "eval/", "sft/")
"""Folders of a data folder that are looked into, too."""


@dataclass(frozen=True)
class Layout:
    """One way in which the files of a dataset lie.

    Attributes:
        pattern: path without its ending; `{config}` and `{split}` stand for the names on the hub.
            One without `{split}` holds the measured split.
        config: the config that it is of; None = any.
        rows: the key of a `.json` file that holds its rows; None = the file is a list of rows.
        form: how rows are written whose fields differ from the hub's: one of `rows.FORMS`.
    """

    pattern: str
    config: str | None = None
    rows: str | None = None
    form: str | None = None


_CONFIG = re.compile(r"\w[\w .+-]*")
"""Names that may become part of a path; others are looked for on the hub only."""
_ENDING = rf"(?P<part>-\d+-of-\d+(-\w+)?)?(?P<suffix>{'|'.join(map(re.escape, SUFFIXES))})"
SAME = {"hails/mmlu_no_train": "cais/mmlu"}
"""Copies, and what they are copied from: that is asked for instead, so that it is there once."""
_WHOLE = (None, "main", "default")
"""Configs of datasets that have one only: no folder needs to be named after them."""
_FOLDERS = ("data", "plain_text", "{name}")
"""What the hub calls the only folder of such a dataset."""
_USUAL = ("{name}/{config}/{split}", "{name}/{config}.{split}", "{name}/{config}")
_UNDIVIDED = ("{name}/{split}", *(f"{{name}}/{one}/{{split}}" for one in _FOLDERS))

KNOWN: dict[str, tuple[Layout, ...]] = {
    "SaylorTwift/bbh": (
        Layout("bbh/{config}", rows="examples"),
        Layout("bbh6/{config}", rows="examples"),
    ),
    "allenai/ai2_arc": (
        Layout("llm_foundry/arc_easy", "ARC-Easy", form="arc"),
        Layout("llm_foundry/arc_challenge", "ARC-Challenge", form="arc"),
    ),
    "allenai/openbookqa": (Layout("llm_foundry/openbook_qa", form="openbookqa"),),
    "allenai/winogrande": (Layout("llm_foundry/winogrande", form="winogrande"),),
    "aps/super_glue": (
        Layout("llm_foundry/boolq", "boolq", form="boolq"),
        Layout("llm_foundry/copa", "copa", form="copa"),
    ),
    "baber/piqa": (Layout("llm_foundry/piqa", form="piqa"),),
    "cais/mmlu": (Layout("mmlu20/{config}.{split}"),),
    "ceval/ceval-exam": (Layout("ceval-exam/{split}/{config}_{split}"),),
    "EleutherAI/lambada_openai": (Layout("llm_foundry/lambada_openai", form="lambada"),),
    "haonan-li/cmmlu": (Layout("cmmlu/{split}/{config}"),),
    "openai/openai_humaneval": (Layout("humaneval/HumanEval"),),
    "tau/commonsense_qa": (Layout("llm_foundry/commonsense_qa", form="commonsense_qa"),),
}
"""Further layouts by the dataset's name on the hub: as others publish the files."""


@dataclass(frozen=True)
class Found:
    """The files of a dataset, or of one of its configs.

    Attributes:
        layout: how they lie.
        builder: what of the package datasets reads them.
        files: those of each split.
    """

    layout: Layout
    builder: str
    files: dict[str, tuple[Path, ...]]

    @property
    def rows(self) -> str | None:
        """The key that holds the rows, in files that are one JSON value."""
        first = next(iter(self.files.values()))[0]
        return self.layout.rows if first.name.endswith((".json", ".json.gz")) else None


def short_name(dataset: str) -> str:
    """What the folder of a dataset is called: the last part of its name on the hub."""
    return SAME.get(dataset, dataset).rpartition("/")[2]


def usual_place(dataset: str, config: str | None, split: str) -> str:
    """The path below the data folder where a split is looked for first; for messages."""
    folder = "" if config in _WHOLE else "<subject>/" if config == "*" else f"{config}/"
    return f"{short_name(dataset)}/{folder}{split}.jsonl"


def find_files(
    data_dir: Path, dataset: str, config: str | None, splits: Sequence[str]
) -> Found | None:
    """Find the files of a dataset.

    Args:
        data_dir: the user's folder.
        dataset: its name on the hub.
        config: the config there; `*` = any: it is then only said whether there are some.
        splits: those that are wanted, the measured one first; others may be missing.

    Returns:
        The files of the first layout that has the measured split; None if none has.

    Raises:
        ConfigError: one split lies there in two forms, or splits in different ones.
    """
    if config not in (None, "*") and not _CONFIG.fullmatch(config):
        return None
    for layout in _layouts(dataset, config):
        for root in _ROOTS:
            found = _of_layout(data_dir / root, layout, dataset, config, splits)
            if found is not None:
                return found
    return None


def _layouts(dataset: str, config: str | None) -> Iterator[Layout]:
    dataset = SAME.get(dataset, dataset)
    for layout in KNOWN.get(dataset, ()):
        if config == "*" or layout.config in (None, config):
            yield layout
    for pattern in (*(_UNDIVIDED if config in _WHOLE else ()), *(_USUAL if config else ())):
        yield Layout(pattern)


def _of_layout(
    root: Path, layout: Layout, dataset: str, config: str | None, splits: Sequence[str]
) -> Found | None:
    files: dict[str, tuple[Path, ...]] = {}
    kinds: dict[str, str] = {}
    for split in splits if "{split}" in layout.pattern else splits[:1]:
        stem = layout.pattern.format(name=short_name(dataset), config=config, split=split)
        forms = _forms(root, stem)
        if not forms:
            continue
        if len(forms) > 1 and config != "*":
            both = " and ".join(str(paths[0]) for paths in list(forms.values())[:2])
            raise ConfigError(f"{both} are both there: keep one of them.")
        (suffix, in_parts), paths = next(iter(forms.items()))
        if in_parts and config != "*":
            _require_all_parts(paths)
        files[split], kinds[split] = tuple(paths), SUFFIXES[suffix]
    if splits[0] not in files:
        return None
    if len({*kinds.values()}) > 1:
        told = ", ".join(str(paths[0]) for paths in files.values())
        raise ConfigError(f"the splits of {dataset} must all be of one kind, found {told}.")
    return Found(layout, kinds[splits[0]], files)


def _forms(root: Path, stem: str) -> dict[tuple[str, bool], list[Path]]:
    """The files of a split by their ending, and whether they are numbered parts as on the hub."""
    head, _, last = stem.rpartition("/")
    wanted = re.compile(re.escape(last).replace(r"\*", ".+") + _ENDING)
    forms: dict[tuple[str, bool], list[Path]] = {}
    for folder in root.glob(head) if "*" in head else [root / head]:
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            if found := wanted.fullmatch(name):
                forms.setdefault((found["suffix"], bool(found["part"])), []).append(folder / name)
    return forms


def _require_all_parts(paths: Sequence[Path]) -> None:
    """A download that was interrupted leaves some of the parts."""
    count = int(re.findall(r"-of-(\d+)", paths[0].name)[-1])
    if len(paths) < count:
        raise ConfigError(
            f"{paths[0].parent} holds {len(paths)} of {count} parts like {paths[0].name}: download "
            "the others."
        )
