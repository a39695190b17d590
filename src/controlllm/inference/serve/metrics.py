"""What `/metrics` tells, in Prometheus's text form: counts and times, never texts."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from controlllm.inference.engine import Engine, Usage

__all__ = ["Metrics"]

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The numbers of one server.

    Args:
        engine: whose health is told.
    """

    def __init__(self, engine: Engine) -> None:
        self._all = here = CollectorRegistry()
        self._requests = Counter(
            "controlllm_requests", "Requests by path and status.", ("path", "status"), registry=here
        )
        self._tokens = Counter(
            "controlllm_tokens",
            "Tokens by model: read, of these found in caches, and written.",
            ("model", "kind"),
            registry=here,
        )
        self._first = Histogram(
            "controlllm_first_token_seconds",
            "Time to the first text.",
            buckets=_SECONDS,
            registry=here,
        )
        self._whole = Histogram(
            "controlllm_answer_seconds",
            "Time to the end of an answer.",
            buckets=_SECONDS,
            registry=here,
        )
        self.left = Counter(
            "controlllm_clients_left", "Clients that left before their answer.", registry=here
        )
        for name, text in (
            ("running", "Requests being written."),
            ("waiting", "Requests waiting."),
            ("cache_bytes", "Memory of the KV caches kept for later."),
        ):
            gauge = Gauge(f"controlllm_{name}", text, registry=here)
            gauge.set_function(partial(_told, engine, name))

    def request(self, path: str, status: int) -> None:
        """Count a request; `path` is one of the routes."""
        self._requests.labels(path, str(status)).inc()

    def first(self, seconds: float) -> None:
        """Count the time to a first text."""
        self._first.observe(seconds)

    def answered(self, model: str, usage: Usage, seconds: float) -> None:
        """Count an answer's tokens and time."""
        self._whole.observe(seconds)
        self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(model, "cached").inc(usage.cached_tokens)
        self._tokens.labels(model, "completion").inc(usage.completion_tokens)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._all)


def _told(engine: Engine, name: str) -> float:
    """A number of the engine's health."""
    return float(getattr(engine.health(), name))
