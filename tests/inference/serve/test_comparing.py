"""`/controlllm/compare`: the numbers of `token_changes`, one job among others, within bounds."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import httpx2
import pytest
import torch
from tests.inference.serve.page_helpers import TEMPLATE, served

from controlllm import expand
from controlllm.inference.compare import token_changes
from controlllm.inference.generate import text_ids
from controlllm.inference.serve import ServeLimits

ASKED = {"model": "maths", "prompt": "Once upon", "answer": " a time <s>"}


@pytest.fixture(scope="module")
def model(pico_llama: Callable) -> Any:
    model = expand(pico_llama(), num_blocks=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in model.trainable_parameter_groups()["expanded"]:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def address(model: Any, pico_tokenizer: Any) -> Iterator[str]:
    limits = ServeLimits(max_tokens=40, messages=2)
    with served(model, pico_tokenizer, limits=limits) as address:
        yield address


def asked(address: str, **body: Any) -> Any:
    return httpx2.post(f"{address}/controlllm/compare", json=body, timeout=60)


def test_it_tells_the_changes_of_the_answers_tokens(address, model, pico_tokenizer) -> None:
    reply = asked(address, **ASKED, alpha=0.7).json()
    assert (reply["model"], reply["sidecar"], reply["alpha"]) == ("maths", "maths", 0.7)
    ids = text_ids(pico_tokenizer, "Once upon a time <s>")[0].tolist()
    assert 1 not in ids[1:]  # the name of a special token is text
    model.set_alpha(0.7)
    expected = token_changes(model, pico_tokenizer, ids, start=len("Once upon") + 1)
    model.set_alpha(None)
    assert "".join(token["text"] for token in reply["tokens"]) == ASKED["answer"]
    for token, change in zip(reply["tokens"], expected, strict=True):
        assert token["kl"] == pytest.approx(change.kl, abs=2e-5)
        assert token["change"] == pytest.approx(change.change, abs=2e-5)
        assert token["tuned_choice"]["text"] == change.tuned_choice.text
    assert reply["mean_kl"] > 0.01


def test_many_at_a_time_do_not_mix(address) -> None:
    alphas = [0.0, 0.3, 1.0] * 6
    single = {alpha: asked(address, **ASKED, alpha=alpha).json() for alpha in set(alphas)}
    with ThreadPoolExecutor(6) as pool:
        replies = [*pool.map(lambda alpha: asked(address, **ASKED, alpha=alpha).json(), alphas)]
    assert replies == [single[alpha] for alpha in alphas]
    assert single[0.0]["mean_kl"] == 0.0
    assert single[0.3]["mean_kl"] != single[1.0]["mean_kl"]


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"prompt": None}, 400, "either messages or prompt"),
        ({"messages": [{"role": "user", "content": "a"}]}, 400, "either messages or prompt"),
        ({"messages": [{"role": "user", "content": "a"}], "prompt": None}, 400, "no chat template"),
        ({"answer": "x" * 41}, 400, "at most 40 tokens"),
        ({"prompt": "x" * 120}, 400, "context holds 128 tokens"),
        ({"alpha": 1.5}, 400, "less than or equal to 1"),
        ({"model": "../maths"}, 404, "does not exist"),
        ({"colour": "red"}, 400, "does not know this field"),
        ({"answer": 5}, 400, "valid string"),
    ],
)
def test_what_it_cannot_take_is_refused(address, change: dict, status: int, told: str) -> None:
    reply = asked(address, **{k: v for k, v in (ASKED | change).items() if v is not None})
    assert reply.status_code == status
    assert told in reply.json()["error"]["message"]


def test_a_chat_is_rendered_and_the_answer_is_not(model, pico_tokenizer) -> None:
    tokenizer = deepcopy(pico_tokenizer)
    tokenizer.chat_template = TEMPLATE
    turns = [{"role": "user", "content": "a"}]
    with served(model, tokenizer, api_key="open sesame") as address:
        body = {"model": "maths", "messages": turns, "answer": "b</s>c"}
        assert asked(address, **body).status_code == 401
        key = {"Authorization": "Bearer open sesame"}
        url = f"{address}/controlllm/compare"
        reply = httpx2.post(url, json=body, headers=key, timeout=60).json()
        assert [token["text"] for token in reply["tokens"]] == [*"b</s>c"]  # a token per byte
        info = httpx2.get(f"{address}/controlllm/info", headers=key).json()
    assert info["can_chat"] and info["has_dial"]
    assert info["sidecars"] == ["maths"] and info["context"] == 128


def test_a_plain_model_has_nothing_to_compare(pico_llama, pico_tokenizer) -> None:
    with served(pico_llama(), pico_tokenizer) as address:
        reply = asked(address, model="base", prompt="a", answer="b")
        assert reply.status_code == 400
        assert "nothing beside its base" in reply.json()["error"]["message"]
        assert httpx2.get(f"{address}/controlllm/info").json()["sidecars"] == []
