"""A chat template is a stranger's program: it renders in a process that can be ended."""

import copy
import shutil
import sys
import time
from typing import Any

import pytest

from controlllm.common.errors import ConfigError, DataError
from controlllm.inference.engine import LocalEngine
from controlllm.inference.serve import ServeLimits, ServeSettings, make_app, serve
from controlllm.inference.serve.templates import TemplateProcess, TemplateTimeError

openai = pytest.importorskip("openai")

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HUGE = "{% set x = namespace(t='x') %}{% for a in range(60) %}{% set x.t = x.t + x.t %}{% endfor %}"
TALKS = "{% for m in messages %}{{ 'x' * 9999 }}{% endfor %}"
SPEAKS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
HELLO = [{"role": "user", "content": "hello"}]
WHEN = "{% if messages[0].content == 'hang' %}" + ENDLESS + "{% endif %}" + SPEAKS
LIMITS = ServeLimits(template_seconds=2, template_mib=64, body_bytes=2000)


@pytest.fixture
def with_template(chat_tokenizer: Any):
    made: list[TemplateProcess] = []

    def make(template: str, limits: ServeLimits = LIMITS) -> TemplateProcess:
        tokenizer = copy.deepcopy(chat_tokenizer)
        tokenizer.chat_template = template
        made.append(TemplateProcess(tokenizer, limits))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_it_renders_as_the_tokenizer_does_and_stays_warm(with_template, chat_tokenizer) -> None:
    one = with_template(chat_tokenizer.chat_template, ServeLimits())
    expected = chat_tokenizer.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True)
    assert one.render(HELLO) == expected
    process = one._process
    assert one.render(HELLO * 2) != expected
    assert one._process is process


def test_an_endless_one_is_ended_and_the_next_goes_well(with_template) -> None:
    one = with_template(WHEN)
    assert one.render(HELLO) == "[user]hello</s>"
    begin = time.monotonic()
    with pytest.raises(TemplateTimeError, match="more than 2 seconds"):
        one.render([{"role": "user", "content": "hang"}])
    assert time.monotonic() - begin < 60  # Not the hours that it would take.
    assert one.render(HELLO) == "[user]hello</s>"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (HUGE, "refuses|64 MiB"),
        (TALKS, "more than 8000 characters"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses"),
        ("{% include '/etc/passwd' %}", "refuses"),
        ("{{ nothing.at.all }}", "refuses"),
    ],
    ids=["huge", "talks", "raises", "reaches", "reads", "undefined"],
)
def test_what_a_template_may_not_do(with_template, template: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        with_template(template).render(HELLO)


def test_it_has_none_of_our_secrets(with_template, monkeypatch) -> None:
    monkeypatch.setenv("CONTROLLLM_API_KEY", "secret of the tests")
    one = with_template(SPEAKS)
    one.start()
    assert one._process is not None
    with open(f"/proc/{one._process.pid}/environ", "rb") as file:
        assert b"secret" not in file.read()


def test_a_killed_process_is_started_again(with_template) -> None:
    one = with_template(SPEAKS)
    one.start()
    one._process.kill()
    one._process.wait()
    assert one.render(HELLO) == "[user]hello</s>"


def test_the_server_outlives_a_template(serving, chat_tokenizer) -> None:
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = WHEN
    client = serving(tokenizer=tokenizer, limits={"template_seconds": 2}).client()

    def chat(content: str) -> Any:
        messages = [{"role": "user", "content": content}]
        return client.chat.completions.create(model="base", messages=messages, max_tokens=1)

    with pytest.raises(openai.BadRequestError, match="was ended"):
        chat("hang")
    assert chat("hello").choices


def test_a_server_whose_templates_cannot_render_does_not_start(
    make_tuned, chat_tokenizer: Any, monkeypatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    engine = LocalEngine(make_tuned(), chat_tokenizer)
    with pytest.raises(ConfigError, match="did not start"):
        serve(make_app(engine, ServeSettings(port=0)))
    assert not engine.health().works
