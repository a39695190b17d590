"""Who may ask: names, origins, keys, headers, bounds; over a real socket."""

import contextlib
import http.client
import json
from typing import Any

import pytest
from tests.inference.serve.conftest import until

from controlllm.common.errors import ConfigError
from controlllm.inference.serve import ServeSettings

pytest.importorskip("openai")

BODY = {"model": "base", "prompt": "ab", "max_tokens": 1}
KEY = "a key of the tests"


def ask(
    running: Any,
    path: str = "/v1/completions",
    body: Any = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
) -> tuple[int, dict[str, str], Any]:
    """Status, headers, and what is in the reply."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    sent = ({"Content-Type": "application/json"} if raw is not None else {}) | (headers or {})
    connection.request(method or ("GET" if raw is None else "POST"), path, raw, sent)
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    is_json = reply.headers.get_content_type() == "application/json"
    told = {name.lower(): value for name, value in reply.headers.items()}
    return reply.status, told, json.loads(text) if is_json else text.decode()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("192.168.1.7", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_only_addresses_and_known_names_are_this_server(running, host, status) -> None:
    assert ask(running, "/v1/models", headers={"Host": host})[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # Another port is another origin.
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 200),
    ],
)
def test_other_pages_may_not_ask(running, headers, status) -> None:
    found, told, _ = ask(running, body=BODY, headers=headers)
    assert found == status
    assert "access-control-allow-origin" not in told


def test_the_own_page_may_ask(running) -> None:
    for scheme, host in (("http", f"127.0.0.1:{running.port}"), ("https", "localhost")):
        headers = {"Host": host, "Origin": f"{scheme}://{host}"}
        assert ask(running, body=BODY, headers=headers)[0] == 200


def test_allowed_names_and_origins(serving) -> None:
    one = serving(allowed_hosts=("box.lan",), allowed_origins=("https://ui.lan",))
    assert ask(one, body=BODY, headers={"Host": "box.lan:80"})[0] == 200
    assert ask(one, body=BODY, headers={"Origin": "https://ui.lan"})[0] == 200
    assert ask(one, body=BODY, headers={"Origin": "http://ui.lan"})[0] == 403


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        (f"Basic {KEY}", 401),
        (f"Bearer {KEY[:-1]}", 401),
        (f"Bearer {KEY}x", 401),
        ("Bearer \xfc", 401),
        ("Bearer", 401),
        (None, 401),
    ],
)
def test_the_key_is_needed_and_is_enough(locked, given, status) -> None:
    headers = {} if given is None else {"Authorization": given}
    found, _, body = ask(locked, body=BODY, headers=headers)
    assert found == status
    if status == 401:
        assert body["error"]["code"] == "invalid_api_key"


@pytest.fixture(scope="module")
def locked(make_tuned, chat_tokenizer):
    from tests.inference.serve.conftest import start

    from controlllm.inference.engine import EngineSettings

    settings = ServeSettings(port=0, api_key=KEY)
    one = start(make_tuned(), chat_tokenizer, settings, EngineSettings())
    yield one
    one.stop()


def test_without_the_key_only_health_is_told(locked) -> None:
    assert ask(locked, "/health")[0] == 200
    for path in ("/v1/models", "/metrics", "/v1/models/base", "/docs", "/openapi.json", "/x"):
        assert ask(locked, path)[0] == 401
    assert KEY not in repr(locked.server.service.settings)


def test_an_address_of_others_needs_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7", "box.lan"):
        with pytest.raises(ConfigError, match="key"):
            ServeSettings(host=host)
        ServeSettings(host=host, api_key=KEY)
    for host in ("127.0.0.1", "::1", "localhost"):
        ServeSettings(host=host)
    for key in ("short", "ümlauts are no ASCII", "line\nbreaks are none"):
        with pytest.raises(ConfigError, match="8 characters"):
            ServeSettings(api_key=key)


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nothing", "/metrics"])
def test_every_reply_has_the_headers(running, path) -> None:
    told = ask(running, path)[1]
    assert "default-src 'none'" in told["content-security-policy"]
    assert "unsafe" not in told["content-security-policy"]
    assert told["x-content-type-options"] == "nosniff"
    assert told["x-frame-options"] == "DENY"
    assert "server" not in told


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not JSON"),
        (b"\xff\xfe\x00", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[]", 400, ""),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400, ""),
        (b'{"model":"base","prompt":"a","alpha":NaN}', 400, ""),
        (b'{"model":"base","prompt":"a","alpha":1e999}', 400, ""),
        (b'{"model":"base","prompt":"a","temperature":Infinity}', 400, ""),
        (b'{"model":"base","prompt":"\\ud800","max_tokens":1}', 400, ""),
        (b'{"model":"base","prompt":"' + b"x" * (10 << 20) + b'"}', 413, "larger than"),
    ],
    ids=[f"garbage-{number}" for number in range(11)],
)
def test_garbage_is_refused_and_the_server_lives(running, body, status, words) -> None:
    try:
        found, _, reply = ask(running, body=body)
    except (BrokenPipeError, ConnectionResetError):  # It stops reading what is too large.
        assert status == 413
    else:
        assert found == status
        assert words in reply["error"]["message"]
    assert ask(running, body=BODY)[0] == 200


def test_a_long_body_without_a_length_is_cut_off(running) -> None:
    def parts():
        for _ in range(80):
            yield b" " * (1 << 16)

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        assert ask(running, body=parts(), headers={"Content-Type": "application/json"})[0] == 413
    assert ask(running, body=BODY)[0] == 200


def test_forms_and_other_methods_are_refused(running) -> None:
    form = {"Content-Type": "text/plain"}
    assert ask(running, body=json.dumps(BODY).encode(), headers=form)[0] == 415
    assert ask(running, "/v1/completions", method="GET")[0] == 405
    assert ask(running, "/v1/chat/../../etc/passwd")[0] == 404
    assert ask(running, "/v1/models/..%2f..%2fetc")[0] == 404


def test_metrics_count_without_words(running) -> None:
    secret = "a secret of a client"
    ask(running, body=BODY | {"prompt": secret})
    ask(running, f"/{secret.replace(' ', '-')}")
    told = (
        'controlllm_requests_total{path="/v1/completions",status="200"}',
        'controlllm_requests_total{path="other",status="404"}',
        'controlllm_tokens_total{kind="completion",model="base"}',
        "controlllm_running 0.0",
    )
    texts: list[str] = []

    def counted() -> bool:
        texts.append(ask(running, "/metrics")[2])
        return all(line in texts[-1] for line in told)

    until(counted)  # A request is counted a moment after its reply.
    assert "secret" not in texts[-1]


def test_logs_have_no_words_of_clients(running, caplog) -> None:
    caplog.set_level("DEBUG")
    ask(running, body=BODY | {"prompt": "a secret"})
    ask(running, body=BODY | {"secret": 1})
    ask(running, "/v1/secret?secret")
    for line in ("POST /v1/completions 200", "POST /v1/completions 400", "other 404"):
        until(lambda line=line: line in caplog.text)  # Logged a moment after the reply.
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "alpha", ["high", [0.3], {"maths": 2}, {"maths": None}, {"maths": {"1": 0.3}}]
)
def test_a_wrong_alpha_is_told_what_it_may_be(running, alpha) -> None:
    status, _, reply = ask(running, body=BODY | {"model": "base", "alpha": alpha})
    assert status == 400
    message = reply["error"]["message"]
    assert message == (
        'alpha: must be a number from 0 to 1, or such numbers by sidecar, as in {"maths": 0.4}.'
    )
