"""`controlllm serve` as a process: what it prints, how it ends, and after it was killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlllm.cli.serve import _key
from controlllm.common.errors import ConfigError

openai = pytest.importorskip("openai")

KEY = "a key of the tests"
ASKED = {"model": "tuned", "prompt": "abc", "temperature": 0}


@pytest.fixture(scope="module")
def saved(make_tuned: Callable, pico_tokenizer: Any, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "full"
    model = make_tuned()
    model.generation_config.eos_token_id = None
    model.config.get_text_config().max_position_embeddings = 1 << 15  # No text ends by itself.
    model.save_pretrained(folder)
    pico_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def command(saved: Path, repository: Path) -> Iterator[Callable[..., Any]]:
    """Start the command, and give its process and a client as soon as it says its address."""
    started: list[subprocess.Popen] = []

    def start(port: int = 0, **environment: str) -> tuple[subprocess.Popen, Any]:
        env = {**os.environ, "PYTHONPATH": str(repository / "src"), "CONTROLLLM_API_KEY": KEY}
        words = ["serve", str(saved), "--port", str(port), "--alphas", "[0.5]"]
        process = subprocess.Popen(
            [sys.executable, "-m", "controlllm.cli", *words],
            env=env | environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Serving at http://127.0.0.1:") and "base, tuned, tuned@0.5" in line
        url = line.split()[2]
        return process, openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(command) -> None:
    process, client = command()
    expected = client.completions.create(**ASKED, max_tokens=5).choices[0].text
    stream = client.completions.create(**ASKED, max_tokens=2000, stream=True)
    next(stream)
    process.kill()
    with pytest.raises(Exception, match=r"(?i)peer|connection|incomplete"):
        list(stream)
    port = client.base_url.port
    _, again = command(port)
    assert again.completions.create(**ASKED, max_tokens=5).choices[0].text == expected


@pytest.mark.slow
def test_asked_to_end_it_finishes_and_ends_well(command) -> None:
    process, client = command()
    stream = client.completions.create(**ASKED, max_tokens=200, stream=True)
    next(stream)
    process.send_signal(signal.SIGTERM)
    *_, last = stream
    assert last.choices[0].finish_reason in ("length", "stop")
    assert process.wait(60) == 0
    text = process.stdout.read()
    assert "curl http://127.0.0.1" in text and "$CONTROLLLM_API_KEY" in text
    assert KEY not in text


def test_the_key_comes_from_a_file_of_ones_own_or_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("CONTROLLLM_API_KEY", raising=False)
    assert _key(None) is None
    monkeypatch.setenv("CONTROLLLM_API_KEY", KEY)
    assert _key(None) == KEY
    file = tmp_path / "key"
    file.write_text("another key\n")
    file.chmod(0o600)
    assert _key(str(file)) == "another key"
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        _key(str(file))
    file.write_text("")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="is empty"):
        _key(str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        _key(str(tmp_path / "none"))
