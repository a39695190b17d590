"""Clients that leave, read nothing, send nothing, come in crowds; a server that is to end."""

import asyncio
import contextlib
import json
import signal
import socket
import threading
import time
from typing import Any

import pytest
import uvicorn
from pydantic import ValidationError
from tests.inference.serve.conftest import until

from controlllm.inference.serve.bodies import ChatBody, CompletionBody
from controlllm.inference.serve.comparing import CompareBody
from controlllm.inference.serve.connection import patient
from controlllm.inference.serve.errors import error_of_fields

openai = pytest.importorskip("openai")

LONG = {"model": "tuned", "prompt": "abc", "max_tokens": 400, "temperature": 0}


def raw(running: Any, body: dict, **options: int) -> socket.socket:
    """A connection that has sent a request, and has read nothing."""
    connection = socket.create_connection(("127.0.0.1", running.port), timeout=30)
    for name, value in options.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    text = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
    return connection


def busy(running: Any) -> int:
    health = running.engine.health()
    return health.running + health.waiting


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_not_written_for(serving, stream: bool) -> None:
    running = serving()
    running.hold(20)
    connection = raw(running, LONG | {"stream": stream})
    until(lambda: running.engine.health().running == 1)
    if stream:
        assert connection.recv(1)
    work = running.engine._running[0]
    connection.close()
    until(lambda: work.cancelled)
    running.go()
    until(lambda: busy(running) == 0)
    assert work.written < 400
    until(lambda: running.server.service.in_flight == 0)


def test_a_waiting_client_that_leaves_loses_its_place(serving) -> None:
    one = serving(compute={"max_running": 1})
    one.hold()
    held = raw(one, LONG | {"stream": True})
    until(lambda: one.engine.health().running == 1)
    waiting = raw(one, LONG)
    until(lambda: one.engine.health().waiting == 1)
    waiting.close()
    until(lambda: one.engine.health().waiting == 0)
    held.close()
    one.go()
    until(lambda: busy(one) == 0)


def test_too_many_are_told_so(serving) -> None:
    one = serving(compute={"max_running": 1, "max_waiting": 1})
    one.hold()
    first = raw(one, LONG | {"stream": True})
    until(lambda: one.engine.health().running == 1)
    second = raw(one, LONG | {"stream": True})
    until(lambda: one.engine.health().waiting == 1)
    for stream in (True, False):  # A stream, too, has a status of its own for this.
        with pytest.raises(openai.RateLimitError):
            one.client().completions.create(**LONG, stream=stream)
    first.close()
    second.close()
    one.go()
    until(lambda: busy(one) == 0)
    assert one.client().completions.create(**LONG | {"max_tokens": 1}).choices


def test_a_request_has_its_time(serving) -> None:
    one = serving(compute={"request_seconds": 0.1})
    with pytest.raises(openai.InternalServerError) as late:
        one.client().completions.create(**LONG)
    assert late.value.status_code == 504
    with pytest.raises(openai.APIError, match="longer than"):
        list(one.client().completions.create(**LONG, stream=True))


@pytest.mark.parametrize("sends", [False, True], ids=["silent", "still-sending"])
def test_a_client_that_reads_nothing_is_dropped(sends: bool) -> None:
    """Against an application that writes for ever, as uvicorn alone would let it."""
    ended = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

        writing = asyncio.create_task(write())
        while (await receive())["type"] != "http.disconnect":
            pass
        writing.cancel()
        ended.set()

    config = uvicorn.Config(
        app, port=0, http=patient(0.5), lifespan="off", ws="none", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    slow = socket.create_connection(("127.0.0.1", port), timeout=30)
    slow.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n")
    end = time.monotonic() + 20
    while not ended.wait(0.1) and time.monotonic() < end:
        if sends:
            with contextlib.suppress(ConnectionError):
                slow.sendall(b"x")
    assert ended.is_set()
    slow.close()
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (ChatBody, '{"messages": [%s]}'),
        (ChatBody, '{"messages": [{"role": "user", "content": [%s]}]}'),
        (CompareBody, '{"messages": [%s]}'),
        (CompletionBody, '{"stop": [%s]}'),
        (CompletionBody, '{"prompt": [%s]}'),
        (CompletionBody, '{"prompt": [[%s]]}'),
    ],
)
def test_a_list_is_refused_at_its_first_wrong_item(body: Any, text: str) -> None:
    """An error for each of the 500,000 items of a body held up all clients for half a minute."""
    with pytest.raises(ValidationError) as refused:
        body.model_validate_json(text % ",".join(["1.5"] * 1000))
    assert refused.value.error_count() < 12


@pytest.mark.parametrize("text", ["{%s}", '{"messages": [{%s}]}'])
def test_of_very_many_unknown_fields_one_is_told(text: str) -> None:
    """All 90,000 of a body as Python's objects held up all clients for more than a second."""
    unknown = ",".join(f'"field{number}": 1' for number in range(90_000))
    with pytest.raises(ValidationError) as refused:
        ChatBody.model_validate_json(text % unknown)
    told = error_of_fields(refused.value, [*ChatBody.model_fields])
    assert told.status == 400 and len(told.message) < 200
    assert told.param in ("model", "messages.0.role", "field0")


def test_connections_that_send_nothing_are_closed(serving) -> None:
    one = serving(limits={"client_seconds": 0.5})
    silent = socket.create_connection(("127.0.0.1", one.port), timeout=30)
    half = socket.create_connection(("127.0.0.1", one.port), timeout=30)
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localh")
    body = socket.create_connection(("127.0.0.1", one.port), timeout=30)
    body.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    for connection in (silent, half):
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
    assert b" 408 " in body.recv(100)


def test_open_connections_are_bounded(serving) -> None:
    one = serving(limits={"connections": 8})
    idle = [socket.create_connection(("127.0.0.1", one.port), timeout=30) for _ in range(8)]
    until(lambda: len(one.server.server_state.connections) == 8)
    late = raw(one, LONG)
    assert b" 503 " in late.recv(100)
    for connection in (*idle, late):
        connection.close()
    until(lambda: not one.server.server_state.connections)
    assert one.client().completions.create(**LONG | {"max_tokens": 1}).choices


def test_asked_to_stop_it_finishes_what_runs_and_takes_nothing_new(serving) -> None:
    one = serving()
    answers: list[Any] = []
    asking = threading.Thread(
        target=lambda: answers.append(one.client().completions.create(**LONG | {"max_tokens": 60}))
    )
    warm = one.client()  # Its connection is open already.
    warm.models.list()
    one.hold()
    asking.start()
    until(lambda: busy(one) == 1)
    one.server.service.draining = True
    with pytest.raises(openai.APIStatusError) as refused:
        warm.completions.create(**LONG)
    assert refused.value.status_code == 503
    one.go()
    one.stop()
    asking.join(30)
    assert answers[0].usage.completion_tokens == 60
    assert not one.engine._thread.is_alive()


@pytest.mark.parametrize(("signals", "seconds"), [(1, 0.2), (2, 600)])
def test_asked_to_stop_it_does_not_wait_for_ever(serving, signals: int, seconds: float) -> None:
    """What still runs then is told so, in a stream and without; a second signal is "then"."""
    one = serving(limits={"stop_seconds": seconds})
    one.hold(100)
    stream = raw(one, LONG | {"stream": True})
    whole = raw(one, LONG)
    until(lambda: one.engine.health().running == 2)
    assert stream.recv(1, socket.MSG_PEEK)  # It has begun.
    for _ in range(signals):
        one.server.handle_exit(signal.SIGTERM, None)
    until(lambda: not one.engine.health().works)  # The time is up.
    one.go()
    one.thread.join(30)
    assert not one.engine._thread.is_alive()
    for connection, status in ((stream, b" 200 "), (whole, b" 503 ")):
        text = b"".join(iter(lambda c=connection: c.recv(1 << 20), b""))
        assert status in text[:20]
        assert b"the server has ended" in text
        assert b"[DONE]" not in text
        connection.close()


def test_a_crowd_of_clients_equals_clients_one_by_one(running) -> None:
    bodies = [
        {"model": "base", "extra_body": {"alpha": alpha, "sidecar": "tuned"}, "seed": seed}
        for alpha in (0.1, 0.4, 0.9)
        for seed in (1, 2)
    ]
    told: dict[int, str] = {}

    def ask(number: int) -> str:
        fields = bodies[number] | {"prompt": "abc", "max_tokens": 6}
        return running.client().completions.create(**fields).choices[0].text

    threads = [
        threading.Thread(target=lambda i=i: told.__setitem__(i, ask(i))) for i in range(len(bodies))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert told == {i: ask(i) for i in range(len(bodies))}
    assert len(set(told.values())) > 3
