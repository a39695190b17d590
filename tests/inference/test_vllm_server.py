import os
import sys

import pytest

from controlllm import expand
from controlllm.common.errors import ConfigError
from controlllm.inference import vllm_server
from controlllm.inference.vllm_server import Launch, serve, server_command, server_environment

KEY = "a-long-secret"


@pytest.fixture(scope="module")
def folder(pico_llama, tmp_path_factory):
    place = tmp_path_factory.mktemp("vllm") / "maths"
    expand(pico_llama(), num_blocks=1).save_pretrained(place)
    return place


def test_every_setting_reaches_the_command_line_but_the_key(folder, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    more = ("--tensor-parallel-size", "2")
    launch = Launch("0.0.0.0", 9000, KEY, context=512, max_running=3, more=more)
    command = server_command(folder, launch)
    assert command[:2] == [sys.executable, "-m"]
    pairs = dict(zip(command[5::2], command[6::2], strict=True))
    assert pairs == {
        "--host": "0.0.0.0",
        "--port": "9000",
        "--served-model-name": "maths",
        "--max-model-len": "512",
        "--max-num-seqs": "3",
        "--tensor-parallel-size": "2",
    }
    assert server_environment(launch)["VLLM_API_KEY"] == KEY and KEY not in command
    assert "VLLM_API_KEY" not in server_environment(Launch())


def test_a_sidecar_is_refused_with_the_command_that_makes_a_whole_model(pico_llama, tmp_path):
    expand(pico_llama(), num_blocks=1).save_sidecar(tmp_path / "s")
    with pytest.raises(ConfigError, match=r"controlllm export .* --form full"):
        server_command(tmp_path / "s", Launch())


def test_without_vllm_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(vllm_server, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install vllm"):
        serve(folder, Launch())


def test_it_becomes_the_server(folder, monkeypatch):
    became = []
    monkeypatch.setattr(vllm_server, "find_spec", lambda name: name)
    monkeypatch.setattr(os, "execve", lambda *args: became.append(args))
    serve(folder, Launch(api_key=KEY))
    [(program, command, environment)] = became
    assert program == sys.executable and str(folder) in command
    assert environment["VLLM_API_KEY"] == KEY
