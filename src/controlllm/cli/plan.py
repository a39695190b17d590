"""`controlllm plan`: what a run will take, before anything is loaded."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from controlllm.cli.train import parse_run
from controlllm.common.errors import ConfigError
from controlllm.common.facts import setting
from controlllm.common.settings import TINY
from controlllm.common.storage.files import require_writable, write_json
from controlllm.common.text.tables import format_table
from controlllm.expansion import ExpansionConfig
from controlllm.train.config.methods import METHODS
from controlllm.train.config.run_config import RunConfig
from controlllm.train.config.ways import WAYS
from controlllm.train.parallel.mesh import MeshPlan, plan_mesh

if TYPE_CHECKING:
    from controlllm.train.plan.estimate import Estimate

__all__ = ["PlanOptions", "run"]

GIB = 2**30


@dataclass
class PlanOptions(RunConfig):
    """Show what a run will take, for several numbers of expanded blocks.

    Takes the run file that `train` takes, and every setting of it. Reads the model's config; no
    weights, no data.
    """

    num_blocks: list[int] = setting(factory=lambda: [4, 8, 16, 32], at_least=1)
    """Numbers of expanded blocks to plan for, beside the run's own."""
    world_size: int = setting(1, at_least=1)
    """Processes of the run, one on each device."""
    local_world_size: int | None = setting(None, at_least=1)
    """Processes on each machine (for hsdp); null = all on one."""
    device_name: str = "H100"
    """Which device: A100, H100, 'H100 PCIe', 'H100 NVL', H200, 'H200 NVL', B200, L40S, MI300X."""
    mfu: float = setting(0.4, at_least=TINY, at_most=1)
    """Share of the device's peak rate that the run is believed to reach, 0 to 1."""
    output: str | None = None
    """JSON file to write the numbers to."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        super().__post_init__()
        if self.parallel.tensor_size > 1:
            raise ConfigError(
                f"parallel.tensor_size={self.parallel.tensor_size}: `plan` does not support "
                "tensor groups; set 1."
            )


def run(argv: list[str]) -> None:
    """Print the plan."""
    options = parse_run(PlanOptions, argv, "plan")
    from controlllm.train.observe.peaks import required_peak
    from controlllm.train.plan.estimate import estimate, model_config
    from controlllm.train.setup.ways.earlier import settled_run

    settled = settled_run(options)
    assert isinstance(settled, PlanOptions)  # made of the options that it was given
    options = settled
    if options.output is not None:
        require_writable(options.output)
    peak = required_peak(options.device_name)
    mesh = plan_mesh(
        options.parallel, options.world_size, options.local_world_size or options.world_size
    )
    config, expansion = model_config(options)
    if options.continue_from is not None and WAYS.get(options.continue_by).same_expansion:
        expansion = options.expansion
    layers = config.get_text_config(decoder=True).num_hidden_layers
    print("\n".join(_head(options, layers, mesh)))
    ways = list(_ways(options, expansion, layers))
    plans = [estimate(options, config, way, mesh) for way in ways]
    speeds = [
        options.mfu * peak * mesh.world_size / plan.flops.model * plan.tokens for plan in plans
    ]
    method = options.method
    print(f"\n{_sizes(method, plans, speeds)}\n\nGiB on each device:\n\n{_memory(method, plans)}")
    if options.output is not None:
        rows = [asdict(p) | {"tokens_per_second": s} for p, s in zip(plans, speeds, strict=True)]
        write_json(options.output, rows)


def _ways(
    options: PlanOptions, expanded: ExpansionConfig | None, layers: int
) -> Iterator[ExpansionConfig | None]:
    """How the model may be expanded; what does not fit is told."""
    if not METHODS.get(options.method).expands:
        if expanded is not None:
            raise ConfigError(
                f"method={options.method!r} needs a model that is not expanded; "
                "collapse it first (`controlllm export`)."
            )
        yield None
        return
    if expanded is not None:
        print("The model is expanded already, and would be trained further as it is.")
        yield expanded
        return
    from controlllm.expansion import plan_blocks

    own = len(plan_blocks(options.expansion, layers))
    for number in sorted({own, *options.num_blocks}):
        if number == own:
            yield options.expansion
        elif number > layers or (options.expansion.structure == "hybrid" and number % 2):
            print(f"{number} blocks do not fit: {layers} layers, {options.expansion.structure}.")
        else:
            yield replace(options.expansion, num_blocks=number, layers=None)


def _head(options: PlanOptions, layers: int, mesh: MeshPlan) -> list[str]:
    training = options.training
    rows, length = training.per_device_train_batch_size, options.data.max_length
    micro = training.micro_batches(mesh.world_size)
    return [
        f"{options.model.model_name_or_path}: {layers} layers, method {options.method}",
        f"{mesh.world_size} x {options.device_name}: {mesh.copies} x {mesh.parts} processes "
        f"({options.parallel.strategy}: copies x parts); a step is {micro} x {rows} x {length} "
        "tokens on each",
        f"tokens per second at an MFU of {options.mfu:g}",
    ]


def _sizes(method: str, plans: list["Estimate"], speeds: list[float]) -> str:
    headers = ["blocks", "parameters", "trained", "TFLOP/step", "tokens/s", "checkpoint GiB"]
    rows: list[list[Any]] = []
    for plan, speed in zip(plans, speeds, strict=True):
        name, step = _name(plan, method), plan.flops.model / 1e12
        sizes = (plan.parameters, plan.trained)
        rows.append([name, *sizes, step, round(speed), plan.checkpoint / GIB])
    return format_table(headers, rows)


def _memory(method: str, plans: list["Estimate"]) -> str:
    parts = list(asdict(plans[0].memory))
    rows: list[list[Any]] = []
    for plan in plans:
        sizes = (*asdict(plan.memory).values(), plan.memory.total)
        rows.append([_name(plan, method), *(size / GIB for size in sizes)])
    return format_table(["blocks", *parts, "total"], rows)


def _name(plan: "Estimate", method: str) -> int | str:
    return method if plan.blocks is None else plan.blocks
