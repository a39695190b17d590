"""`controlllm demo`: the two-minute story."""

__all__ = ["run"]


def run(argv: list[str]) -> None:
    """Hand over to the demo."""
    raise NotImplementedError
