"""`controlllm demo`: the story in four minutes."""

from controlllm.cli.kit.parsing import parse_options
from controlllm.demo import DemoConfig

__all__ = ["run"]


def run(argv: list[str]) -> None:
    """Run the demo."""
    options = parse_options(DemoConfig, argv, "demo")

    from controlllm.demo import run as run_demo

    run_demo(options)
