"""Servers over real sockets, with a pico model behind them."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from controlllm.inference.engine import EngineSettings, LocalEngine
from controlllm.inference.serve import ServeLimits, ServeSettings, make_app
from controlllm.inference.serve.running import Server

openai = pytest.importorskip("openai")


@dataclass
class Running:
    """A server that listens."""

    server: Server
    engine: LocalEngine
    port: int
    thread: threading.Thread
    steps: threading.Semaphore | None = None
    """How many more tokens the model may write; None = as many as it likes."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def hold(self, steps: int = 0) -> None:
        """Let the model write so many tokens, and then wait for `go`: no test races with it."""
        self.steps = threading.Semaphore(steps)

    def go(self) -> None:
        if self.steps is not None:
            held, self.steps = self.steps, None
            held.release()

    def pace(self, logits: Callable) -> Callable:
        """The logits of the engine's desk, held where a test says so."""

        def paced(*given: Any) -> Any:
            if self.steps is not None:
                assert self.steps.acquire(timeout=120)
            return logits(*given)

        return paced

    def stop(self) -> None:
        self.go()
        self.server.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()


def until(true: Callable[[], bool]) -> None:
    """Wait for it, as long as a busy machine may need."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def start(model: Any, tokenizer: Any, settings: ServeSettings, compute: EngineSettings) -> Running:
    engine = LocalEngine(model, tokenizer, compute)
    where: queue.Queue[int] = queue.Queue()
    server = Server(make_app(engine, settings), lambda host, port: where.put(port))
    thread = threading.Thread(target=server.run)
    thread.start()
    return Running(server, engine, where.get(timeout=60), thread)


@pytest.fixture(scope="module")
def running(make_tuned: Callable, chat_tokenizer: Any) -> Iterator[Running]:
    """One server for all tests of a file."""
    settings = ServeSettings(port=0, alphas=(0.3, 0.5), limits=ServeLimits(max_tokens=128))
    one = start(make_tuned(), chat_tokenizer, settings, EngineSettings(max_running=2))
    yield one
    one.stop()


@pytest.fixture
def serving(make_tuned: Callable, pico_tokenizer: Any) -> Iterator[Callable[..., Running]]:
    """`serving(limits={...}, compute={...}, tokenizer=..., **settings)` starts a server.

    Without chat, and its model does not end a text by itself.
    """
    made: list[Running] = []

    def make(
        limits: dict | None = None,
        compute: dict | None = None,
        tokenizer: Any = pico_tokenizer,
        **settings: Any,
    ) -> Running:
        settings = {"port": 0, "limits": ServeLimits(**limits or {})} | settings
        model, computes = make_tuned(), EngineSettings(**compute or {})
        made.append(one := start(model, tokenizer, ServeSettings(**settings), computes))
        desk = one.engine._desk
        desk.ends, desk.logits = frozenset(), one.pace(desk.logits)
        return one

    yield make
    for one in made:
        one.stop()
