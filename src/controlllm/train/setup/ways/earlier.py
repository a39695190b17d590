"""The run that another one goes on from: found, read, and what need not be said again."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from controlllm.checkpoint import (
    KINDS,
    Kind,
    LoadOptions,
    Location,
    find_parent,
    locate,
    locate_parent,
    record_stage,
    saved_apart,
)
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.registry import check_choice, few
from controlllm.common.storage.remote import is_remote
from controlllm.data import DataConfig, SourceConfig
from controlllm.expansion import ExpansionConfig
from controlllm.expansion.files.lineage import parents_beside, stage_name
from controlllm.expansion.files.places import places_of
from controlllm.expansion.files.records import read_sidecar_config
from controlllm.train.config.config_io import build, read_yaml
from controlllm.train.config.run_config import RunConfig
from controlllm.train.config.ways import WAYS
from controlllm.train.setup.ways.contract import BASE, Earlier, Found, run_folder_of
from controlllm.train.setup.ways.expansion import goes_on, laid_over

__all__ = [
    "earlier_data",
    "find_earlier",
    "lies_inside",
    "same_rows",
    "settled_run",
    "stages_before",
]


def find_earlier(run: RunConfig) -> Earlier:
    """Find what a run goes on from, and read what is recorded of it.

    Raises:
        ConfigError: it is no expanded model that was saved apart from its base.
        CheckpointError: there is nothing, or it is broken.
    """
    location, folder, values = _found(run)
    older = values.get("parents", [])
    options = _options(run, location, values)
    names = [str(parent["name"]) for parent in older]
    record = record_stage(location, str(run.continue_by), names, options)
    found = _find_stages(older, folder, options)
    return Earlier(location, folder, (*older, record), options, found)


def _find_stages(
    older: list[dict[str, Any]], child: Path, options: LoadOptions
) -> dict[str, Found | CheckpointError]:
    """The stages before a sidecar; each is read once, here or with the model that it is part of."""
    beside = {parent["name"] for parent in parents_beside(older)}  # Checked as they are loaded.
    found: dict[str, Found | CheckpointError] = {}
    for record in older:
        name = record["name"]
        try:
            if name in beside:
                location = locate_parent(record, child)
            else:
                location = find_parent(record, child, options)
            apart = saved_apart(location)
            assert apart is not None  # `locate_parent` has looked
            values = read_sidecar_config(apart.folder)
        except CheckpointError as error:
            found[name] = error
        else:
            found[name] = Found(location, tuple(values.get("parents", [])))
    return found


def settled_run(run: RunConfig) -> RunConfig:
    """A run with what it need not say again, as the one that it goes on from says it.

    That is the base, the expansion, and where all data is learned together the earlier data.

    Raises:
        ConfigError: both say it, and differ; or the earlier data is not known; or the budget names
            a stage that is not among those before; or a stage would be overwritten.
        CheckpointError: there is nothing to go on from, or it is broken.
    """
    if run.continue_from is None:
        _check_budget(run, [BASE])
        return run
    location, folder, values = _found(run)
    _refuse_their_folders(run, location, folder, values)
    way = WAYS.get(run.continue_by)
    base = _options(run, location, values).base
    recorded = ExpansionConfig.from_dict(values["expansion"])
    expansion = goes_on(run, recorded) if way.same_expansion else laid_over(run, recorded)
    model = replace(run.model, model_name_or_path=base, base=None)
    data = run.data
    if way.all_data:
        data = _joined(run, location, folder, values)
    _check_budget(run, [BASE] if way.all_data else _names(location, values))
    return replace(run, model=model, expansion=expansion, data=data)


def _refuse_their_folders(
    run: RunConfig, location: Location, folder: Path, values: Mapping[str, Any]
) -> None:
    """A run neither writes into the run that it goes on from nor removes a stage (ConfigError)."""
    output = Path(run.training.output_dir).resolve()
    if not run.training.overwrite_output_dir:
        if output != run_folder_of(location).resolve():
            return
        raise ConfigError(
            f"training.output_dir={run.training.output_dir} is the folder of the run that this one "
            "goes on from; give it one of its own."
        )
    places = [Path(location.path)]
    for parent in values.get("parents", []):
        places += [place for place in places_of(parent["place"], folder) if place.is_dir()]
    for place in places:
        if output in (place.resolve(), *place.resolve().parents):
            raise ConfigError(
                f"training.overwrite_output_dir=true would remove {place}, which this run goes on "
                f"from; give it another training.output_dir than {run.training.output_dir}."
            )


def stages_before(run: RunConfig) -> list[str]:
    """The names of the stages before a run, the base first; only configs are read."""
    if run.continue_from is None:
        return [BASE]
    location, _, values = _found(run)
    return _names(location, values)


def _names(location: Location, values: Mapping[str, Any]) -> list[str]:
    names = [BASE, *(str(parent["name"]) for parent in values.get("parents", []))]
    return [*names, stage_name(Path(location.path), names)]


def _check_budget(run: RunConfig, names: list[str]) -> None:
    """A budget by stage names stages that are there (ConfigError)."""
    budget = run.training.max_forgetting
    for name in budget if isinstance(budget, dict) else ():
        check_choice("a stage in training.max_forgetting", name, names)


def _found(run: RunConfig) -> tuple[Location, Path, dict[str, Any]]:
    """Where it lies, its files on this machine, and its config."""
    assert run.continue_from is not None
    location = locate(run.continue_from, run.model.storage_options)
    apart = saved_apart(location)
    if apart is None and location.kind is Kind.HUB:
        raise ConfigError(
            f"continue_from={run.continue_from!r} is no folder here (looked for in {Path.cwd()}), "
            "and no sidecar of that name can be had from the Hub; give the folder of a run."
        )
    if apart is None or apart.kind is not KINDS["control"]:
        kind = location.kind.value if apart is None else apart.kind.name
        raise ConfigError(
            f"continue_from={run.continue_from!r} is no expanded model that lies apart from its "
            f"base, but a {kind} ({location.path}). Name a run of method control or stack, a "
            "checkpoint of it, or a sidecar; anything else is trained further by its name as "
            "model.model_name_or_path."
        )
    return location, apart.folder, read_sidecar_config(apart.folder)


def _options(run: RunConfig, location: Location, values: Mapping[str, Any]) -> LoadOptions:
    """How it is loaded: as the run says, on the base that it names, or else that is recorded.

    Raises:
        ConfigError: two are named, or none.
    """
    given, other = run.model.model_name_or_path, run.model.base
    if given is not None and other is not None and given != other:
        raise ConfigError(
            f"model.model_name_or_path={given!r} and model.base={other!r} name two bases of "
            f"{run.continue_from}; leave one of them out."
        )
    base = given or other or values["base"].get("name_or_path")
    if not base:
        raise ConfigError(
            f"continue_from={run.continue_from!r} does not record its base; name it as "
            "model.model_name_or_path."
        )
    known = {field.name: getattr(run.model, field.name) for field in fields(LoadOptions)}
    return LoadOptions(**{**known, "base": str(base)})


def _joined(
    run: RunConfig, location: Location, folder: Path, values: Mapping[str, Any]
) -> DataConfig:
    """The data of all earlier stages and of the run together.

    Raises:
        ConfigError: that of a stage is not known.
    """
    options = LoadOptions()
    places = [
        run_folder_of(find_parent(parent, folder, options)) for parent in values.get("parents", [])
    ]
    data = run.data
    for place in [*places, run_folder_of(location)]:
        known = earlier_data(place)
        if known is None or not known.train:
            raise ConfigError(
                f"continue_by={run.continue_by} learns the data of all stages together, but there "
                f"is no {place / 'config.yaml'} that says what {place.name} was trained on; name "
                "that data under data.train yourself, and leave continue_from out."
            )
        outside = [s.path for s in known.train if not lies_inside(s.path, place)]
        if outside and not run.continue_trust:
            raise ConfigError(
                f"continue_by={run.continue_by} would train on files of this machine that "
                f"{place / 'config.yaml'} names outside of its folder: {few(outside)}. If you know "
                "them, and who made that run: continue_trust=true (--continue_trust true)."
            )
        data = replace(
            data,
            train=_with(data.train, known.train, place.name),
            learn=_with(data.learn, known.learn, place.name),
            retain=_with(data.retain, known.retain, place.name),
        )
    return data


def lies_inside(path: str, folder: Path) -> bool:
    """Whether a path is one file in a folder, and no link leads out of it."""
    file = Path(path).resolve()
    return file.is_file() and file.is_relative_to(folder.resolve())


def _with(own: list[SourceConfig], more: list[SourceConfig], stage: str) -> list[SourceConfig]:
    """Sources, and those of a stage that are not among them, with names that tell them apart."""
    sources = list(own)
    for source in more:
        if any(same_rows(source, other) for other in sources):
            continue
        taken = {other.name for other in sources}
        name = f"{stage}-{source.name}" if source.name in taken else source.name
        sources.append(replace(source, name=name))
    return sources


def same_rows(one: SourceConfig, other: SourceConfig) -> bool:
    """Whether two sources give the same rows, whatever they are called and however they count."""
    ours, theirs = (replace(source, name="", weight=1.0) for source in (one, other))
    return asdict(ours) == asdict(theirs)


def earlier_data(folder: Path) -> DataConfig | None:
    """The data of the run in a folder, as its config says; None where there is none.

    Whoever wrote that config is not asked for code, servers or secrets: sources at addresses are
    left out, and so are plugins and options.

    Raises:
        ConfigError: the config cannot be read.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    data = build(DataConfig, read_yaml(path).get("data") or {}, f"{path}: data")
    return replace(
        data,
        train=_local(data.train),
        learn=_local(data.learn),
        retain=_local(data.retain),
        replay=[],
        replay_share=0.0,
        stages=[],
        plugins=[],
    )


def _local(sources: list[SourceConfig]) -> list[SourceConfig]:
    return [replace(s, storage_options={}) for s in sources if not is_remote(s.path)]
